"""Find the runs below a folder, and what of each has changed; nothing outside the folder is read.

Links to folders are not followed. A run whose files lead outside the folder is not read at all.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["run", "report", "unreadable"]

RUN = ("metrics.jsonl", "plan.json", "recipe.yaml")  # any of them makes a folder a run
PAGE = "index.html"
SHOWN = ("look", "pictures")  # the folders of a run whose files its page shows
UNREAD = ("checkpoints", "export", "logs", "index")  # its other folders
MARK = b'<meta name="generator" content="unlabeled">'
MARK_WITHIN = 4096  # bytes from the beginning of a page
DEPTH = 6
MOST = 100_000  # names read in one search

Stamp = tuple[str, int, int, int]
"""Name, inode, size and time of change (ns) of a file: another one where it has changed."""


class Found(NamedTuple):
    """A folder with something to show.

    Attributes:
        path: relative to the folder that is searched, with `/`; '' = that folder.
        folder: where it lies.
        kind: what it holds.
        stamps: of its files and folders.
        trouble: why it is not read; '' = it is.
    """

    path: str
    folder: Path
    kind: Kind
    stamps: tuple[Stamp, ...] = ()
    trouble: str = ""

    @property
    def changed(self) -> float:
        """The last change of a file, seconds since 1970."""
        return max((time for _, _, _, time in self.stamps), default=0) / 1e9


class Search(NamedTuple):
    """What a search has found, and whether it saw everything."""

    found: list[Found]
    whole: bool


def search(root: Path) -> Search:
    """Find everything to show in a folder whose path is resolved, the folders nearest to it first."""
    found, waiting, left = list[Found](), deque([("", 0)]), MOST
    while waiting and left > 0:
        path, depth = waiting.popleft()
        try:
            with os.scandir(root / path) as opened:
                entries = sorted(islice(opened, left), key=lambda entry: entry.name)
            left -= len(entries)
            one = _look_at(root, path, entries)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            continue
        except OSError as error:
            one = Found(path, root / path, "unreadable", trouble=f"cannot be read: {error.strerror}")
            entries = []
        if one is not None:
            found.append(one)
        hidden = (*SHOWN, *UNREAD) if one is not None else ()
        inner = [entry for entry in entries if _is_folder(entry) and entry.name not in hidden]
        if one is None:
            found += (linked for entry in entries if (linked := _linked(root, path, entry)))
        if depth < DEPTH:
            waiting.extend((_below(path, entry), depth + 1) for entry in inner if not entry.name.startswith("."))
    return Search(found, left > 0)


def survey(root: Path, one: Found) -> tuple[Stamp, ...]:
    """The stamps of every file that the page of a run may show, those of its folders among them.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a file leads outside of `root`, or may have no end; the message goes on from `it has`.
    """
    stamps, waiting = list[Stamp](), [one.folder]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as opened:
            entries = [entry for entry in opened if folder != one.folder or _is_read(entry, one.kind)]
        stamps += (_stamp(root, entry) for entry in entries)
        waiting += (Path(entry.path) for entry in entries if entry.is_dir())
    return tuple(sorted(stamps))


def _look_at(root: Path, path: str, entries: list[os.DirEntry[str]]) -> Found | None:
    """What a folder holds; None = nothing to show. Raises OSError."""
    names = {entry.name: entry for entry in entries}
    kind: Kind
    if any(name in names for name in RUN):
        kind = "run"
    elif PAGE in names and names[PAGE].is_file(follow_symlinks=False) and _is_ours(Path(names[PAGE].path)):
        kind = "report"
    else:
        return None
    try:
        stamps = tuple(_stamp(root, entry) for entry in entries if _is_read(entry, kind))
    except ValueError as error:
        return Found(path, root / path, kind, trouble=f"is not read: it has {error}")
    return Found(path, root / path, kind, stamps)


def _linked(root: Path, path: str, entry: os.DirEntry[str]) -> Found | None:
    """A link to a folder outside, to be listed with the reason why it is not followed."""
    if entry.is_symlink() and entry.is_dir() and not _is_inside(root, entry.path):
        trouble = "is a link that leads outside the folder: not followed"
        return Found(_below(path, entry), Path(entry.path), "unreadable", trouble=trouble)
    return None


def _is_read(entry: os.DirEntry[str], kind: Kind) -> bool:
    """Whether the page of a folder may read an entry. A run's own page is made anew."""
    return entry.name in SHOWN or (not entry.is_dir() and (kind == "report" or not entry.name.startswith(PAGE)))


def _stamp(root: Path, entry: os.DirEntry[str]) -> Stamp:
    """The stamp of a file or folder. Raises OSError; ValueError where it must not be read."""
    if entry.is_symlink():
        if not _is_inside(root, entry.path):
            raise ValueError(f"{entry.name}, a link that leads outside the folder")
        if entry.is_dir():
            raise ValueError(f"{entry.name}, a link to a folder")
    try:
        known = entry.stat()
    except FileNotFoundError:  # gone meanwhile, or a link to nothing
        return entry.name, 0, 0, 0
    if not stat.S_ISREG(known.st_mode) and not stat.S_ISDIR(known.st_mode):
        raise ValueError(f"{entry.name}, no ordinary file")
    return entry.name, known.st_ino, known.st_size, known.st_mtime_ns


def _below(path: str, entry: os.DirEntry[str]) -> str:
    return f"{path}/{entry.name}" if path else entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_inside(root: Path, path: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _is_ours(page: Path) -> bool:
    with page.open("rb") as opened:
        return MARK in opened.read(MARK_WITHIN)
