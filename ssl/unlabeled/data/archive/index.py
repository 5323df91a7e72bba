"""Index of images: flat arrays that worker processes share without copying, built by one scan.

A million images are a million Python strings otherwise, and every process that touches one copies its page.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import features

from unlabeled.errors import UserError

AVIF = "avif" in features.modules and features.check_module("avif")  # older Pillow does not know it, and would warn
HIDDEN, NO_ENDING, NO_FILE = "hidden", "without an ending", "pipes, sockets and devices"
ENDINGS = b".jpg .jpeg .jpe .jfif .jif .jfi .png .webp .avif .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm .npy".split()
EXTENSIONS = tuple(ending for ending in ENDINGS if AVIF or ending != b".avif")


def is_picture(name: bytes) -> bool:
    """Whether a relative path ends like an image's and no part of it is hidden (`.git`, `._x.jpg`)."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(b".") and b"/." not in name


def ending_of(name: bytes) -> str:
    """The kind under which an unread file is counted, by its relative path: `.dcm`, `.nii.gz`, HIDDEN or NO_ENDING."""
    if name.startswith(b".") or b"/." in name:
        return HIDDEN
    found = re.search(rb"((\.[a-z0-9_-]{1,9})?\.(gz|bz2|xz|zst|zip)|\.[a-z0-9_-]{1,9})$", name.lower())
    # of `1.2.840.10008.5` each part is a number
    return found[0].decode() if found and re.search(rb"[a-z]", found[0]) else NO_ENDING


def readable(name: bytes) -> str:
    """A name for people: what is not UTF-8 is shown as `\\xff`."""
    return name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, eq=False)
class Index:
    """The images below one split, sorted by name (by shard first)."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("names", "ends", "sizes", "shards", "starts")

    names: NDArray[np.uint8]  # uint8 [bytes], the names relative to the split, '/'-separated, one after the other
    ends: NDArray[np.int64]  # int64 [n + 1], name i is `names[ends[i] : ends[i + 1]]`
    sizes: NDArray[np.int64]  # int64 [n], bytes per file
    # int32 [n], the number of the tar, or of the folder where there are several; empty for one folder
    shards: NDArray[np.int32]
    starts: NDArray[np.int64]  # int64 [n], where in the tar the file begins; empty for one folder
    skipped: Counter[str]  # how many files are not read, by what `ending_of` says

    @classmethod
    def empty(cls) -> Index:
        return IndexBuilder().build()

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, i: int) -> bytes:
        return self.names[self.ends[i] : self.ends[i + 1]].tobytes()

    def place(self, i: int) -> int:
        """The number of the tar or of the folder that image i lies in."""
        return int(self.shards[i]) if len(self.shards) else 0

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """Join the indices of several folders."""
        if len(parts) == 1:
            return parts[0]
        lengths = [len(part) for part in parts]
        starts = np.repeat(np.cumsum([0, *(len(part.names) for part in parts[:-1])]), lengths)
        ends = np.concatenate([part.ends[1:] for part in parts]) + starts
        return cls(
            np.concatenate([part.names for part in parts]),
            np.concatenate([[0], ends]).astype(np.int64),
            np.concatenate([part.sizes for part in parts]),
            np.repeat(np.arange(len(parts), dtype=np.int32), lengths),
            np.zeros(sum(lengths), np.int64),
            sum((part.skipped for part in parts), Counter()),
        )

    def fingerprint(self, labels: NDArray[np.int64]) -> str:
        """16 hex digits over names, sizes and labels in order; a folder and a tar of it agree."""
        digest = blake2b(digest_size=8)
        for column in (self.ends, self.sizes, labels):
            digest.update(column.astype("<i8", copy=False).data)
        digest.update(self.names.data)
        return digest.hexdigest()

    def only(self, chosen: NDArray[np.bool_], others: Counter[str]) -> Index:
        """The chosen ones of the images, by a flag [n] for each, and what to count the others under."""
        lengths = np.diff(self.ends)
        ends = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        packed = chosen if len(self.shards) else chosen[:0]  # of tars
        names = self.names[np.repeat(chosen, lengths)]
        return Index(names, ends, self.sizes[chosen], self.shards[packed], self.starts[packed], self.skipped + others)

    def folders(self) -> tuple[tuple[bytes, ...], NDArray[np.int64]]:
        """The first folders of the names, and which of them each image lies in: [n], -1 in none."""
        ids: dict[bytes, int] = {}
        found = array("q")
        for i in range(len(self)):
            folder, slash, _ = self.name(i).partition(b"/")
            found.append(ids.setdefault(folder, len(ids)) if slash else -1)
        return tuple(ids), np.array(found, np.int64)


class IndexBuilder:
    """Collects images below `prefix` ("" for all) into an `Index`."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix + b"/" if prefix else b""
        self.skipped: Counter[str] = Counter()
        self._names = bytearray()
        self._ends, self._sizes, self._shards, self._starts = array("q", [0]), array("q"), array("i"), array("q")

    def add(self, name: bytes, size: int) -> None:
        """An image in a folder, `name` relative to the split."""
        self._names += name
        self._ends.append(len(self._names))
        self._sizes.append(size)

    def add_member(self, name: bytes, shard: int, start: int, size: int) -> bool:
        """A file of a tar, by its full name; whether it is an image below the prefix. Others below it are counted."""
        if not name.startswith(self.prefix):
            return False
        name = name[len(self.prefix) :]
        if not is_picture(name):
            self.skipped[ending_of(name)] += 1
            return False
        self.add_stored(name, shard, start, size)
        return True

    def add_stored(self, name: bytes, shard: int, start: int, size: int) -> None:
        """An image in a tar, `name` relative to the split."""
        self.add(name, size)
        self._shards.append(shard)
        self._starts.append(start)

    def build(self) -> Index:
        """The index; the builder is not used again."""
        ends, sizes, starts = (np.frombuffer(a, np.int64) for a in (self._ends, self._sizes, self._starts))
        shards = np.frombuffer(self._shards, np.int32)
        return Index(np.frombuffer(self._names, np.uint8), ends, sizes, shards, starts, self.skipped)


def scan_folder(root: bytes, entered: set[tuple[int, int]] | None = None) -> tuple[Index, Index]:
    """Every image below `root`, sorted by relative path, and every folder that was entered, when it was changed last.

    Symbolic links are followed, but each real folder is entered once, under the name that sorts first; `entered` are
    those before, by device and number. A link to nothing is kept, so that it is counted as a bad sample rather than
    lost. No folder at all: no images. Raises UserError for a folder that may not be read.
    """
    pictures, folders = IndexBuilder(), IndexBuilder()
    if os.path.isdir(root):
        _walk(root, b"", set() if entered is None else entered, pictures, folders)
    return pictures.build(), folders.build()


def _walk(
    root: bytes, below: bytes, entered: set[tuple[int, int]], builder: IndexBuilder, folders: IndexBuilder
) -> None:
    status = os.stat(root + b"/" + below)
    if (identity := (status.st_dev, status.st_ino)) in entered:
        return
    entered.add(identity)
    folders.add(below, status.st_mtime_ns)  # before it is read: what comes in meanwhile must show
    for entry in _listing(root + b"/" + below):
        name = below + entry
        if entry.startswith(b"."):
            builder.skipped[HIDDEN] += 1
        elif entry.endswith(b"/"):
            _walk(root, name, entered, builder, folders)
        elif not is_picture(entry):
            builder.skipped[ending_of(entry)] += 1
        elif (size := file_size(root + b"/" + name)) is None:
            builder.skipped[NO_FILE] += 1
        else:
            builder.add(name, size)


def changed_folder(roots: Sequence[bytes], folders: Index) -> str | None:
    """The first of the folders of a scan that is not as it was then; None = all are."""
    for i in range(len(folders)):
        path = roots[folders.place(i)] + b"/" + folders.name(i)
        try:
            same = os.stat(path).st_mtime_ns == folders.sizes[i]
        except OSError:
            same = False
        if not same:
            return readable(path)
    return None


def _listing(folder: bytes) -> list[bytes]:
    """Names in a folder, folders ending in '/': sorted so, a walk meets whole paths in byte order."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name + b"/" if e.is_dir() else e.name for e in entries)
    except OSError as error:
        raise UserError(
            f"the folder {os.fsdecode(folder)!r} cannot be read: {error.strerror}. Make it readable."
        ) from error


def file_size(path: bytes) -> int | None:
    """Bytes in a file; 0 for a link to nothing, None for pipes, sockets and devices."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None
