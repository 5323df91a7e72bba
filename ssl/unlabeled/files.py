"""Files that are there whole or not at all, and files of lines that a crash or a full disk may have cut short."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from unlabeled.errors import UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when all is written; after an error it does not."""
    temporary = file.with_name(f"{file.name}.writing")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, file)


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder in the place of another by renaming alone, and flush that: a reader finds the one or the other.

    Where the system cannot exchange two names, the old one is called `former(old)` for a moment. `readable(old)` finds
    it there, also after a kill.
    """
    gone = new if _exchange(new, old) else former(old)
    if gone != new:
        if os.path.lexists(old):
            remove(gone)
            old.rename(gone)
        new.rename(old)
    sync(old.parent)
    with suppress(OSError):  # somebody may be reading it
        remove(gone)


def former(folder: Path) -> Path:
    """Where a folder lies while another takes its place, on systems that cannot exchange names."""
    return folder.with_name(f".{folder.name}-former")


def readable(folder: Path) -> Path:
    """A folder, or the one whose place was being taken when that was cut short."""
    return former(folder) if not os.path.lexists(folder) and former(folder).is_dir() else folder


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link and not what it leads to; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Flush the files of a folder to disk, and its entries."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync(folder)


def sync(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system or the file system has no such step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def check_writable(files: Mapping[str, Path | None]) -> None:
    """Raise UserError when a file, by the option that named it, could not be written in the end."""
    for option, file in files.items():
        if file is None:
            continue
        if file.is_dir():
            raise UserError(f"{option} {file} is a folder; expected a file to write. Name one in it.")
        tried = file.with_name(f".{file.name}-tried")
        try:
            write_text(tried, "")
            tried.unlink()
        except OSError as error:
            raise UserError(f"{option} {file} cannot be written: {error.strerror}. Name another file.") from error


def write_text(file: Path, text: str) -> None:
    """A file of text, whole or not at all, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines: none where there is no file, {} where a line is broken.

    Raises:
        UserError: it is there, and cannot be read.
    """
    try:
        with file.open("rb") as lines:
            yield from map(json_object, lines)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}. Move it away, or make it readable.") from error


def json_object(line: bytes) -> dict[str, Any]:
    """The object on a line; {} where a crash, a full disk or a bad sector left none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def end_line(file: BinaryIO) -> None:
    """End the last line of a file that is open in "ab+", where it was cut short."""
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
    if file.read() not in (b"", b"\n"):
        file.write(b"\n")
