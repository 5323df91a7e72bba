"""Where pictures come from: a folder, a tar or a set of tars, all read in place."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property, lru_cache, partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from unlabeled.data.bands import Target
from unlabeled.data.http import Identity
from unlabeled.data.index import EXTENSIONS, Index, changed_folder, readable, scan_folder
from unlabeled.data.labels import numbered
from unlabeled.data.listing import Asked, Listing, Stamp, kept
from unlabeled.data.remote import identities, is_remote, matching, read_range
from unlabeled.data.skipped import BESIDE, conversion, in_words
from unlabeled.data.source import EncodedConfig, Split
from unlabeled.data.tar import Beside, local_identity, scan_tars
from unlabeled.errors import BadSample, UserError

FOLDERS = "folders"
NAMED = 5
Stray = Literal["error", "skip", "keep"]
# the machine's trouble, not the picture's: skipping would make the pictures seen a matter of luck
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ENDINGS = " ".join(ending.decode() for ending in EXTENSIONS)


class Pictures:
    """A `Source` over files in a folder or members of tars. Pickles without open files.

    Args:
        place: reads their bytes.
        listing: which there are, with their labels.
        target: what `decode` makes of them.

    Attributes:
        skipped: how many files below the split are not read, see `unlabeled.data.skipped`.
    """

    def __init__(self, place: Folder | Tars, listing: Listing, target: Target) -> None:
        self.classes, self.labels, self.skipped = listing.classes, listing.labels, listing.pictures.skipped
        self._place, self._index, self._target = place, listing.pictures, target
        self._fingerprint = listing.fingerprint

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> bytes:
        """The picture's path below the split."""
        return self._index.name(i)

    def key(self, i: int) -> str:
        """The picture's path; in a tar, the archive's path and the member's name."""
        return readable(self._place.path(self._index, i))

    def image(self, i: int) -> Tensor:
        """uint8 [C, H, W], see `unlabeled.data.decode`."""
        from unlabeled.data.decode import decode

        return decode(self.read(i), key=self.key(i), **self._target._asdict())

    def read(self, i: int) -> bytes:
        """The file's bytes.

        Raises:
            BadSample: it is gone, may not be read or has another size than when it was indexed.
        """
        try:
            data = self._place.read(self._index, i)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            raise BadSample(self.key(i), f"cannot be read: {error.strerror}") from error
        if data is None or len(data) != self._index.sizes[i]:
            raise BadSample(self.key(i), "has changed since it was indexed")
        return data

    def fingerprint(self) -> str:
        """16 hex digits over names below the split, sizes and labels; a folder and a tar of it agree."""
        return self._fingerprint


class Folder:
    """Reads files below a folder."""

    def __init__(self, root: bytes) -> None:
        self.root = root

    def path(self, index: Index, i: int) -> bytes:
        """Where picture i lies."""
        return os.path.join(self.root, index.name(i))

    def read(self, index: Index, i: int) -> bytes:
        """The bytes of picture i, and no more than one beyond its indexed size."""
        with open(self.path(index, i), "rb") as file:
            return file.read(int(index.sizes[i]) + 1)


class Tars:
    """Reads members of tars where they lie, here or elsewhere, through what each process opens for itself."""

    def __init__(self, shards: Sequence[Stamp], prefix: bytes) -> None:
        self.shards, below = tuple(shards), b"/" + prefix if prefix else b""
        self.roots = [os.fsencode(shard.path) + below for shard in shards]

    def path(self, index: Index, i: int) -> bytes:
        """The archive's path and the member's name."""
        return b"%b/%b" % (self.roots[index.shards[i]], index.name(i))

    def read(self, index: Index, i: int) -> bytes | None:
        """The bytes of picture i, None where the archive is not the one that was indexed.

        Raises:
            UserError: a remote archive is not, or (Interrupted) cannot be had.
        """
        shard = self.shards[index.shards[i]]
        if is_remote(shard.path):
            return read_range(shard.path, int(index.starts[i]), int(index.sizes[i]), Identity(shard.size, shard.tag))
        descriptor = _descriptor(os.getpid(), shard).number
        if local_identity(descriptor) != (shard.size, shard.tag):
            return None
        return _pread(descriptor, int(index.sizes[i]), int(index.starts[i]))


def _pread(descriptor: int, size: int, start: int) -> bytes:
    """Bytes [start, start + size) of a file, fewer only where it ends: some file systems answer in parts."""
    data = os.pread(descriptor, size, start)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), start + len(data))):
        data += more
    return data


class _Descriptor:
    """An open file, closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # fewer than a process may open: data sets come in thousands of shards
def _descriptor(pid: int, shard: Stamp) -> _Descriptor:
    return _Descriptor(shard.path)


class Reading(NamedTuple):
    """How the labels of a folder or of tars are found: see the fields of `Files`, and `SourceConfig.order`."""

    labels: str = FOLDERS
    stray: Stray = "error"
    order: tuple[str, ...] | None = None


class Files(EncodedConfig):
    """Pictures in a folder, in an uncompressed tar or in several.

    Labels are the first folder below the split, or what files beside the pictures of a tar say; pictures that all lie
    right below the split are unlabelled. Hidden files and files with other endings than those of
    pictures are passed over.
    """

    what_val_is: ClassVar[str] = "the folder of labelled pictures, such as data.val=val"

    name: Literal["files"] = "files"
    path: str = Field(
        min_length=1, description="a folder, a .tar, or a glob of tars such as '/data/shard-*.tar' or s3://..."
    )
    train: str = Field("", description="subfolder or prefix of the pictures to train on; '' or . = all of data.path")
    val: str | None = Field(None, description="subfolder or prefix of labelled pictures to evaluate on; null = none")
    val_path: str | None = Field(
        None, min_length=1, description="where the pictures to evaluate on are, if not in `path`; null = there"
    )
    labels: str = Field(
        FOLDERS,
        pattern=r"^(folders|\w+|json:.+)$",
        description="folders, or in tars the files beside pictures (WebDataset): cls, txt, json:KEY",
    )

    stray: Stray = Field(
        "error",
        description="what becomes of pictures that lie beside the folders of classes: error = stop and name them, skip "
        "= leave them out, keep = use them without a label",
    )

    @field_validator("train", "val")
    @classmethod
    def _relative(cls, prefix: str | None) -> str | None:
        if prefix is None:
            return None
        parts = [part for part in prefix.split("/") if part not in ("", ".")]
        if prefix.startswith("/") or ".." in parts:
            raise ValueError(f"{prefix!r} leads out of data.path; expected a path below it, such as 'train'")
        return "/".join(parts)

    @model_validator(mode="after")
    def _val_outside_train(self) -> Files:
        within = f"{self.train}/" if self.train else ""
        if self.val is not None and self.val_path is None and self.val != self.train and self.val.startswith(within):
            raise ValueError(
                f"val={self.val!r} lies inside train={self.train!r}, so pictures to evaluate on would be "
                f"trained on; expected folders side by side, such as train=train val=val"
            )
        return self

    @property
    def has_val(self) -> bool:
        return self.val is not None or self.val_path is not None

    @property
    def _places(self) -> dict[Split, tuple[str, str]]:
        """Path and prefix of each split."""
        places: dict[Split, tuple[str, str]] = {"train": (os.path.expanduser(self.path), self.train)}
        if self.has_val:
            places["val"] = os.path.expanduser(self.val_path or self.path), self.val or ""
        return places

    @property
    def _reading(self) -> Reading:
        return Reading(self.labels, self.stray, self.order)

    @cached_property
    def _listings(self) -> dict[Split, Listing]:
        stamps = cache(_stamps)  # archives that hold both splits are asked about once
        asked = {
            split: Asked(f"{self._reading} of {prefix!r} in {path!r}", partial(_changed, stamps, path, prefix))
            for split, (path, prefix) in self._places.items()
        }
        return kept(self._index_folder, asked, self._scan, self._index_written)

    def _scan(self) -> dict[Split, Listing]:
        # splits of one path at once: the headers of a large tar take minutes to read
        found: dict[Split, Listing] = {}
        for path in dict.fromkeys(path for path, _ in self._places.values()):
            prefixes = {split: prefix for split, (where, prefix) in self._places.items() if where == path}
            found |= zip(prefixes, _scan(path, list(prefixes.values()), self._reading), strict=True)
        return found

    def source(self, split: Split) -> Pictures:
        """The pictures of one split.

        Raises:
            UserError: nothing at `path`, no pictures in the split, or an archive that cannot be used (see `scan_tars`).
        """
        (path, prefix), listing = self._places[split], self._listings[split]
        if not len(listing.pictures):
            raise UserError(_nothing_found(path, prefix, listing.pictures.skipped))
        place = Tars(listing.files, os.fsencode(prefix)) if listing.files else Folder(_root(path, prefix))
        return Pictures(place, listing, self.target)


def _scan(path: str, prefixes: Sequence[str], how: Reading) -> list[Listing]:
    """What there is below each of the prefixes."""
    if os.path.isdir(path):
        if how.labels != FOLDERS:
            raise UserError(
                f"data.labels={how.labels!r} is for tars, and {path!r} is a folder; expected data.labels=folders"
            )
        roots = [_root(path, prefix) for prefix in prefixes]
        scans = [(root, *scan_folder(root)) for root in roots]
        return [_listing(readable(root), index, how, folders=folders) for root, index, folders in scans]
    shards, found = scan_tars(_archives(path), prefixes, None if how.labels == FOLDERS else Beside.of(how.labels))
    if how.labels == FOLDERS:
        return [
            _listing(os.path.join(path, prefix).rstrip("/"), scan.pictures, how, tuple(shards))
            for prefix, scan in zip(prefixes, found, strict=True)
        ]
    return [Listing.of(scan.pictures, *numbered(scan.labels, how.order), tuple(shards), named=True) for scan in found]


def _listing(
    where: str, index: Index, how: Reading, files: tuple[Stamp, ...] = (), folders: Index | None = None
) -> Listing:
    """With the first folder of each name for a label."""
    names, found = index.folders()
    stray = found < 0
    if stray.any() and not stray.all():
        if how.stray == "error":
            raise UserError(_beside_folders(where, index, stray))
        if how.stray == "skip":
            index, found = index.only(~stray, Counter({BESIDE: int(stray.sum())})), found[~stray]
    classes, ids = numbered(map(readable, names), how.order)
    return Listing.of(index, classes, np.append(ids, -1)[found], files, folders)


def _beside_folders(where: str, index: Index, stray: NDArray[np.bool_]) -> str:
    names = [repr(readable(index.name(int(i)))) for i in np.flatnonzero(stray)[:NAMED]]
    more = int(stray.sum()) - len(names)
    return (
        f"{where!r} has folders, whose names are classes, and pictures beside them: {', '.join(names)}"
        f"{f' and {more:,} more' if more else ''}. Move each into the folder of its class; or set data.stray=skip to "
        "leave them out, data.stray=keep to use them without a label"
    )


def _changed(stamps: Callable[[str], Sequence[Stamp]], path: str, prefix: str, listing: Listing) -> str | None:
    """What is not as it was when it was listed: a folder, an archive, or which archives there are."""
    if os.path.isdir(path):
        return readable(_root(path, prefix)) if listing.files else changed_folder(_root(path, prefix), listing.folders)
    now = stamps(path)
    if len(now) != len(listing.files):
        return path
    return next((new.path for old, new in zip(listing.files, now, strict=True) if old != new), None)


def _stamps(path: str) -> Sequence[Stamp]:
    """The archives that `path` names, as they are now."""
    archives = _archives(path)
    found = identities(archives) if is_remote(path) else map(local_identity, archives)
    return [Stamp(archive, *identity) for archive, identity in zip(archives, found, strict=True)]


def _root(path: str, prefix: str) -> bytes:
    return os.fsencode(os.path.join(path, prefix).rstrip("/") or "/")


def _archives(path: str) -> list[str]:
    """The archives that `path` names: itself, or what matches it as a glob, sorted."""
    if is_remote(path):
        return list(matching(path))
    if os.path.exists(path):
        return [path]
    if found := sorted(glob.glob(path)):
        return found
    raise UserError(
        f"{path!r} does not exist; expected a folder, a .tar or a glob of tars (data.path, data.val_path or DATA)"
    )


def _nothing_found(path: str, prefix: str, skipped: Counter[str]) -> str:
    problem = f"no pictures in {path!r}"
    if prefix:
        problem += f" under {prefix!r}; it has {_prefixes(path) or 'no folders'}"
    others = f"; {in_words(skipped)}" if skipped else ""
    problem = f"{problem}{others}. Expected files ending in {_ENDINGS}"
    return problem + conversion(skipped, _root(path, prefix))


def _prefixes(path: str, most: int = 10) -> str:
    """The first folders that exist at `path`, for people."""
    [listing] = _scan(path, [""], Reading(stray="keep"))
    index = listing.pictures
    names = (index.name(i).partition(b"/") for i in range(len(index)))
    folders = sorted({folder for folder, slash, _ in names if slash})
    shown = [repr(readable(folder)) for folder in folders[:most]]
    return ", ".join([*shown, "..."] if len(folders) > most else shown)
