"""Results of a scan, kept in a file: read back in milliseconds, memory-mapped, refused once stale.

The file is plain safetensors: a column per tensor, and in its header what was asked for and a hash of it all.
"""

from __future__ import annotations

import json
import logging
import mmap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.archive.index import EXTENSIONS, Index
from unlabeled.data.label.boxes import BoxTable
from unlabeled.data.label.labels import renumbered
from unlabeled.files import replacing

Split = Literal["train", "val"]
FORMAT = f"2 {len(EXTENSIONS)}"  # what is read depends on Pillow
# something may have changed again within the tick of its clock, as git has it for its index
SETTLED = 2_000_000_000  # ns
DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F64": np.float64}
log = logging.getLogger(__name__)
SAMPLED = 64


def sample_numbers(n: int) -> NDArray[np.int64]:
    """Up to SAMPLED numbers below n, evenly spaced: enough to tell two data sets apart without reading all."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64))


def digest(parts: Sequence[bytes]) -> str:
    """16 hex digits over parts of known length each."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


class Stamp(NamedTuple):
    """A file as it was when it was read."""

    path: str
    size: int
    tag: str  # when it was changed last, ns, or what a remote file system has for it


class Listing(NamedTuple):
    """The images of one split with classes and labels as in `Source`, and what would show that there are others now."""

    pictures: Index
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    files: tuple[Stamp, ...]  # the archives that hold the images, or the table that lists them
    folders: Index  # those that were read, by name below the root; `sizes` are when each was changed last, ns
    fingerprint: str  # of images, labels and boxes
    boxes: BoxTable | None = None  # of the images, where the source has boxes

    @classmethod
    def of(
        cls,
        pictures: Index,
        classes: tuple[str, ...],
        labels: NDArray[np.int64],
        files: tuple[Stamp, ...] = (),
        folders: Index | None = None,
        named: bool = False,
        boxes: BoxTable | None = None,
    ) -> Listing:
        """A listing with its fingerprint; `named` where paths do not contain the class names."""
        found = pictures.fingerprint(labels)
        own = digest([found.encode(), *map(str.encode, classes)]) if named and classes else found
        if boxes is not None:
            own = digest([own.encode(), boxes.digest()])
        return cls(pictures, classes, labels, files, folders or Index.empty(), own, boxes)

    def renumbered(self, order: tuple[str, ...]) -> Listing:
        """The same listing with its classes in another order."""
        classes, labels = renumbered(self.classes, self.labels, order)
        print_ = digest([self.fingerprint.encode(), *map(str.encode, classes), labels.astype("<i8").tobytes()])
        return self._replace(classes=classes, labels=labels, fingerprint=print_)

    def newest(self) -> int:
        """Time of the last change to the files that were read, ns."""
        times = [int(file.tag) for file in self.files if file.tag.isdecimal()]
        return max([*times, int(self.folders.sizes.max(initial=0))])


class CacheKey(NamedTuple):
    """Identifies a listing in the cache: `text` in full; `changed` says what makes it stale."""

    text: str
    changed: Callable[[Listing], str | None]  # what has changed since, for people; None = nothing


class IndexFolder:
    """Listings of one source: found once, and kept in a folder where there is one; `write` allows new ones there."""

    def __init__(self, folder: Path | None = None, write: bool = True) -> None:
        self.folder, self.write = folder, write
        self._known: dict[tuple[Split, str], Listing] = {}
        self._parts: dict[int | str, IndexFolder] = {}

    def part(self, name: int | str) -> IndexFolder:
        """The folder of a part of a mixture by its number, or of another section by its field, below this one."""
        below = None if self.folder is None else self.folder / str(name)
        return self._parts.setdefault(name, IndexFolder(below, self.write))

    def listings(self, asked: dict[Split, CacheKey], scan: Callable[[], dict[Split, Listing]]) -> dict[Split, Listing]:
        """The asked listings as they are known or kept; `scan` finds all of them where one is missing or stale."""
        keys: dict[Split, tuple[Split, str]] = {split: (split, key.text) for split, key in asked.items()}
        if not self._known.keys() >= set(keys.values()):
            found = self._kept(asked) or self._scanned(asked, scan)
            self._known |= {keys[split]: listing for split, listing in found.items()}
        return {split: self._known[key] for split, key in keys.items()}

    def _file(self, split: Split) -> Path:
        assert self.folder is not None
        return self.folder / f"{split}.safetensors"

    def _kept(self, asked: dict[Split, CacheKey]) -> dict[Split, Listing]:
        """The listings as the folder keeps them; empty unless it keeps all."""
        listings: dict[Split, Listing] = {}
        for split, key in asked.items() if self.folder else ():
            if (listing := read(self._file(split), key.text)) is None:
                continue
            if (what := key.changed(listing)) is None:
                listings[split] = listing
            else:
                log.warning("%s has changed since the pictures were indexed: looking for them again", what)
        return listings if len(listings) == len(asked) else {}

    def _scanned(self, asked: dict[Split, CacheKey], scan: Callable[[], dict[Split, Listing]]) -> dict[Split, Listing]:
        began = time.time_ns()
        listings = scan()
        if self.folder is not None and self.write:
            for split, listing in listings.items():
                if len(listing.pictures) and listing.newest() < began - SETTLED:
                    save(self._file(split), listing, asked[split].text)
        return listings


def save(file: Path, listing: Listing, asked: str) -> None:
    """Write a listing, whole or not at all. A disk that takes none is no reason to stop: the next start scans."""
    from safetensors.numpy import save as packed

    indices = {"pictures": listing.pictures, "folders": listing.folders}
    columns = {f"{name}.{field}": getattr(index, field) for name, index in indices.items() for field in Index.COLUMNS}
    columns["labels"] = listing.labels
    if (boxes := listing.boxes) is not None:
        columns |= {f"boxes.{field}": np.ravel(getattr(boxes, field)) for field in BoxTable.COLUMNS}
    header = {
        "format": FORMAT,
        "asked": asked,
        "classes": listing.classes,
        "files": listing.files,
        "skipped": listing.pictures.skipped,
        "fingerprint": listing.fingerprint,
        **({} if boxes is None else {"relative": boxes.relative}),
    }
    text = json.dumps(header)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, several=True) as temporary:
            temporary.write_bytes(packed(columns, {"listing": text, "hash": _hash(text, columns)}))
    except OSError as error:
        log.warning("the index cannot be kept in %s: %s", file, error.strerror)


def read(file: Path, asked: str) -> Listing | None:
    """A listing, mapped into memory; None where there is none, of something else, or damaged."""
    try:
        with file.open("rb") as opened:
            return parsed(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), asked)
    except (OSError, ValueError):
        return None


def parsed(data: bytes | mmap.mmap, asked: str) -> Listing | None:
    """The listing of a file's bytes; None where it is of something else, or damaged."""
    try:
        metadata, columns = _columns(data)
        header = json.loads(metadata["listing"])
        if (header["format"], header["asked"]) != (FORMAT, asked):
            return None
        if metadata["hash"] != _hash(metadata["listing"], columns):
            return None
        pictures = _index(columns, "pictures", Counter(header["skipped"]))
        files = tuple(Stamp(*stamp) for stamp in header["files"])
        folders = _index(columns, "folders", Counter())
        found, boxes = header["fingerprint"], _boxes(columns, header.get("relative"))
        return Listing(pictures, tuple(header["classes"]), columns["labels"], files, folders, found, boxes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _index(columns: dict[str, NDArray[Any]], name: str, skipped: Counter[str]) -> Index:
    own: dict[str, Any] = {column: columns[f"{name}.{column}"] for column in Index.COLUMNS}
    return Index(**own, skipped=skipped)


def _boxes(columns: dict[str, NDArray[Any]], relative: bool | None) -> BoxTable | None:
    if relative is None:
        return None
    own: dict[str, Any] = {name: columns[f"boxes.{name}"] for name in BoxTable.COLUMNS}
    return BoxTable(**{**own, "corners": own["corners"].reshape(-1, 4)}, relative=relative)


def _hash(header: str, columns: dict[str, NDArray[Any]]) -> str:
    digest = blake2b(header.encode(), digest_size=16)
    for name in sorted(columns):
        digest.update(f"{name} {columns[name].dtype} {len(columns[name])};".encode())
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def _columns(buffer: bytes | mmap.mmap) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and 1-D columns of a safetensors file, read-only views of its bytes."""
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    metadata = header.pop("__metadata__")
    columns = {
        name: np.frombuffer(buffer, DTYPES[entry["dtype"]], entry["shape"][0], start + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    return metadata, columns
