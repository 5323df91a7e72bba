"""Images of many tars by shard: a small table of all tars in memory, the index of one mapped when an image of it is
asked for. A billion images in 100,000 tars are a table of a few MB in every process instead of an index of 57 GB.

    INDEX/by_shard/SPLIT.json                          the tars, their numbers of images, the names of all classes
    INDEX/by_shard/SPLIT/0c4/0c4...e1f.safetensors     the index of one tar, by a hash of its path

Numbers, names and labels of images are those of the index of all tars together (`unlabeled.data.sources.files`).
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.data.archive import listing
from unlabeled.data.archive.listing import SETTLED, IndexFolder, Listing, Split, Stamp, digest
from unlabeled.data.archive.pictures import Pictures, Tars
from unlabeled.data.archive.places import FOLDERS, Reading, scan_places
from unlabeled.data.archive.remote import Ahead, is_remote, side_by_side
from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.labels import numbered
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.files import write_text
from unlabeled.paths import UserPath
from unlabeled.progress import track
from unlabeled.recipe.free import FREE

MARKED = 10_000_000  # images whose sizes are put together; of more, nobody compares all
FORMAT = 1


class ByShard(BaseModel, frozen=True, extra="forbid"):
    """How the indexes of single tars are kept."""

    open: Annotated[int, FREE] = Field(
        256,
        ge=1,
        description="indexes that a process has open at a time, a file each; with data.order.name=window its shards or "
        "more",
    )
    folder: Annotated[UserPath | None, FREE] = Field(
        None,
        description="folder on each machine's own disk that indexes are copied to when they are opened, for all "
        "processes there; null = they are read from the run's folder",
    )


class Table(NamedTuple):
    """The tars of a split."""

    files: tuple[Stamp, ...]
    counts: NDArray[np.int64]  # images in each
    prints: tuple[str, ...]  # fingerprint of each
    labelled: NDArray[np.bool_]  # whether images of it have labels
    classes: tuple[str, ...]  # of all
    skipped: Counter[str]

    def numbered(self, how: Reading, path: str) -> Table:
        """The table with its classes in their order; tars without folders of classes beside others are as `data.stray`
        says. Raises UserError where it says that they are an error."""
        classes, _ = numbered(self.classes, how.order)
        table = self._replace(classes=classes)
        stray = ~self.labelled & (self.counts > 0)
        if how.labels != FOLDERS or how.stray == "keep" or not stray.any() or not self.labelled.any():
            return table
        if how.stray == "skip":
            return table._replace(counts=np.where(stray, 0, self.counts))
        one = self.files[int(np.flatnonzero(stray)[0])].path
        raise UserError(
            f"{path!r} names tars with folders, whose names are classes, and others without, such as {one!r}. Set "
            "data.stray=skip to leave these out, data.stray=keep to use their pictures without a label"
        )


Counted = tuple[Stamp, int, str, bool, tuple[str, ...], Counter[str]]  # a row of the table


class Shards:
    """The indexes of tars, each found once, kept in a folder, and read from there by every process.

    Args:
        paths: of the tars.
        prefix: of the images in them.
        how: labels are found.
        split: names the files.
        index: keeps them, where it may write; else they stay in memory.
        own: folder on this machine's disk to copy them to; None = none.
    """

    def __init__(
        self, paths: Sequence[str], prefix: str, how: Reading, split: Split, index: IndexFolder, own: str | None
    ) -> None:
        self.paths, self.prefix, self.how = tuple(paths), prefix, how
        self._kept = None if index.folder is None else index.folder / "by_shard" / split
        self._own = None if own is None else Path(own) / digest([str(self._kept).encode()]) / split
        self._writes = index.write
        self._memory: dict[int, Listing] = {}

    def table(self, stamps: Sequence[Stamp]) -> Table:
        """The table of the tars as they are now, from what is kept where they have not changed."""
        asked = {"format": FORMAT, "listing": listing.FORMAT, "asked": self._asked(self.paths)}
        file = None if self._kept is None else self._kept.with_suffix(".json")
        if (known := None if file is None else _read(file, asked)) is not None and known.files == tuple(stamps):
            return known._replace(files=tuple(stamps))  # one copy of them in memory
        find = partial(self._counted, stamps)
        found = list(track(side_by_side(find, range(len(stamps))), "indexing tars", len(stamps)))
        files, counts, prints, labelled, classes, skipped = zip(*found, strict=True)
        table = Table(
            files,
            np.array(counts, np.int64),
            prints,
            np.array(labelled, np.bool_),
            tuple(sorted({name for names in classes for name in names})),
            sum(skipped, Counter()),
        )
        if file is not None and self._writes and not self._memory:
            write_text(file, json.dumps({**asked, **_plain(table)}))
        return table

    def _counted(self, stamps: Sequence[Stamp], shard: int) -> Counted:
        found = self.listing(shard, stamps[shard])
        skipped, labelled = found.pictures.skipped, bool(found.classes)
        return found.files[0], len(found.labels), found.fingerprint, labelled, found.classes, skipped

    def listing(self, shard: int, stamp: Stamp) -> Listing:
        """The index of a tar, mapped from a file where it is kept in one. Raises UserError when the tar cannot be
        used."""
        asked, key = self._asked([self.paths[shard]]), digest([self.paths[shard].encode()])
        name = Path(key[:3], f"{key}.safetensors")  # some thousand folders of few files each
        for folder in (self._own, self._kept):
            if folder is not None and (found := listing.read(folder / name, asked)) and found.files == (stamp,):
                return found if folder == self._own else self._copied(found, name, asked)
        if (known := self._memory.get(shard)) is not None and known.files == (stamp,):
            return known
        return self._scanned(shard, name, asked)

    def _scanned(self, shard: int, name: Path, asked: str) -> Listing:
        began = time.time_ns()
        [found] = scan_places((self.paths[shard],), [self.prefix], self.how)
        folder = self._kept if self._writes else self._own
        if folder is not None and found.newest() < began - SETTLED:
            listing.save(folder / name, found, asked)
            return listing.read(folder / name, asked) or found
        self._memory[shard] = found
        return found

    def _copied(self, found: Listing, name: Path, asked: str) -> Listing:
        """The same from this machine's own disk."""
        if self._own is None:
            return found
        listing.save(self._own / name, found, asked)
        return listing.read(self._own / name, asked) or found

    def _asked(self, paths: Sequence[str]) -> str:
        return f"{self.how} of {self.prefix!r} in {digest([path.encode() for path in paths])}"


class Sharded(Source):
    """A source over many tars, of which it holds the table; indexes of `most` of them are open at a time."""

    encoded = True

    def __init__(self, shards: Shards, table: Table, most: int, target: Target, connections: int) -> None:
        self.classes, self._shards, self._table, self._target = table.classes, shards, table, target
        self._most, self._connections = most, connections
        self._ends: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table.counts)])
        self._ids = {name: number for number, name in enumerate(table.classes)}
        self._remote = any(is_remote(path) for path in shards.paths)
        self._coming: Ahead | None = None
        self._open = self._cached()

    def _cached(self) -> Callable[[int], Pictures]:
        return lru_cache(self._most)(partial(_opened, self._shards, self._table, self._target, self._connections))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_coming")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_coming": None}
        self._open = self._cached()

    def __copy__(self) -> Sharded:
        other = object.__new__(type(self))  # it shares what is open
        other.__dict__ |= self.__dict__
        return other

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shards(self) -> NDArray[np.int64]:
        return self._ends

    @property
    def skipped(self) -> Counter[str]:
        return self._table.skipped

    @property
    def marks(self) -> NDArray[np.int64] | None:
        """The sizes of the files [n], bytes; None of too many."""
        if len(self) > MARKED:
            return None
        return np.concatenate([one.marks for one in self._each()])

    @cached_property
    def labels(self) -> NDArray[np.int64]:  # type: ignore[override]  # put together when all are asked for
        return np.concatenate([self._numbers(one)[one.labels] for one in self._each()])

    def label(self, i: int) -> int:
        if "labels" in self.__dict__:
            return int(self.labels[i])
        pictures, row = self._at(i)
        return int(self._numbers(pictures)[pictures.labels[row]])

    def _numbers(self, pictures: Pictures) -> NDArray[np.int64]:
        """The number here of each class of a shard; -1 stays the last."""
        return np.array([*(self._ids[name] for name in pictures.classes), -1])

    def _each(self) -> Iterator[Pictures]:
        return (self._open(shard) for shard in np.flatnonzero(self._table.counts).tolist())

    def _at(self, i: int) -> tuple[Pictures, int]:
        """The shard that image i lies in, and its number there."""
        shard = int(np.searchsorted(self._ends, i, side="right")) - 1
        return self._open(shard), i - int(self._ends[shard])

    def name(self, i: int) -> bytes:
        pictures, row = self._at(i)
        return pictures.name(row)

    def key(self, i: int) -> str:
        pictures, row = self._at(i)
        return pictures.key(row)

    def image(self, i: int) -> Tensor:
        pictures, row = self._at(i)
        return pictures.taking(self._coming).image(row)

    def read(self, i: int) -> bytes:
        pictures, row = self._at(i)
        return pictures.taking(self._coming).read(row)

    def ahead(self, numbers: Sequence[int]) -> Source:
        if not self._remote:
            return self
        other = copy(self)
        places = map(self._at, numbers)
        pieces = [piece for pictures, row in places for piece in pictures.pieces([row])]
        other._coming = Ahead(pieces, self._connections)
        return other

    def fingerprint(self) -> str:
        """16 hex digits over the fingerprints of the tars, in order, and the classes."""
        return digest([*map(str.encode, (*self._table.prints, *self.classes)), self._table.counts.tobytes()])


def _opened(shards: Shards, table: Table, target: Target, connections: int, shard: int) -> Pictures:
    """The images of one tar, with the classes of that tar. Raises UserError when there are others by now."""
    found = shards.listing(shard, table.files[shard])
    if found.fingerprint != table.prints[shard]:
        raise UserError(f"{shards.paths[shard]!r} has changed since it was indexed. Start again: it is read anew")
    return Pictures(Tars(found.files, os.fsencode(shards.prefix), connections), found, target)


def _plain(table: Table) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in table._asdict().items()}


def _read(file: Path, asked: dict[str, Any]) -> Table | None:
    """A table that was kept; None where there is none, of something else, or damaged."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if any(said.pop(name) != value for name, value in asked.items()):
            return None
        return Table(
            tuple(Stamp(*stamp) for stamp in said["files"]),
            np.array(said["counts"], np.int64),
            tuple(said["prints"]),
            np.array(said["labelled"], np.bool_),
            tuple(said["classes"]),
            Counter(said["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
