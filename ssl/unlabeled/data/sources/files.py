"""Where pictures come from: a folder, a tar or a set of tars, all read in place."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from unlabeled.data.archive.http import Identity
from unlabeled.data.archive.index import EXTENSIONS, Index, changed_folder, readable, scan_folder
from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split, Stamp
from unlabeled.data.archive.remote import identities, is_remote, read_range
from unlabeled.data.archive.skipped import BESIDE, conversion, in_words
from unlabeled.data.archive.tar import local_identity, scan_tars
from unlabeled.data.archive.webdataset import ALL, Beside
from unlabeled.data.decoding.bands import Target
from unlabeled.data.decoding.decode import decode
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.label.as_one import read_as_one
from unlabeled.data.label.labels import numbered
from unlabeled.data.paths import Paths, entries
from unlabeled.data.source import EncodedConfig, Source, SourceConfig
from unlabeled.errors import BadSample, UserError
from unlabeled.paths import UserPath

FOLDERS = "folders"
NAMED = 5
Stray = Literal["error", "skip", "keep"]
PathOrPaths = UserPath | Annotated[tuple[UserPath, ...], Field(min_length=1)]
# the machine's trouble, not the picture's: skipping would make the pictures seen a matter of luck
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ENDINGS = " ".join(ending.decode() for ending in EXTENSIONS)


class Pictures(Source):
    """A source over files in a folder or members of tars. Pickles without open files.

    Args:
        place: reads their bytes.
        listing: lists them, with their labels.
        target: the form that they are decoded to.
    """

    encoded = True

    def __init__(self, place: Folder | Tars, listing: Listing, target: Target) -> None:
        self.classes, self.labels = listing.classes, listing.labels
        self._place, self._index, self._target = place, listing.pictures, target
        self._fingerprint = listing.fingerprint

    def __len__(self) -> int:
        return len(self._index)

    @property
    def marks(self) -> NDArray[np.int64]:
        """The sizes of the files [n], bytes."""
        return self._index.sizes

    @property
    def skipped(self) -> Counter[str]:
        return self._index.skipped

    def name(self, i: int) -> bytes:
        """The picture's path below the split."""
        return self._index.name(i)

    def key(self, i: int) -> str:
        """The picture's path; in a tar, the archive's path and the member's name."""
        return readable(self._place.path(self._index, i))

    def file(self, i: int) -> bytes | None:
        """Where the picture lies as a file of its own; None in a tar."""
        return self._place.path(self._index, i) if isinstance(self._place, Folder) else None

    def image(self, i: int) -> Tensor:
        """uint8 [C, H, W], see `unlabeled.data.decoding.decode`."""
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
            raise_if_out_of_memory(error, self.key(i))
            raise BadSample(self.key(i), f"cannot be read: {error.strerror}") from error
        if data is None or len(data) != self._index.sizes[i]:
            raise BadSample(self.key(i), "has changed since it was indexed")
        return data

    def fingerprint(self) -> str:
        """16 hex digits over names below the split, sizes and labels; a folder and a tar of it agree."""
        return self._fingerprint


class Folder:
    """Reads files below a folder, or below several."""

    def __init__(self, *roots: bytes) -> None:
        self.roots = roots

    def path(self, index: Index, i: int) -> bytes:
        """Where picture i lies."""
        return os.path.join(self.roots[index.place(i)], index.name(i))

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
    part: str | None = None
    order: tuple[str, ...] | None = None


class Files(EncodedConfig):
    """Pictures in folders or in uncompressed tars.

    Labels are the first folder below the split, or what files beside the pictures of a tar say; pictures that all lie
    right below the split are unlabelled. Hidden files and files with other endings than those of
    pictures are passed over.
    """

    what_val_is: ClassVar[str] = "the folder of labelled pictures, such as data.val=val"

    name: Literal["files"] = "files"
    path: PathOrPaths = Field(
        description="a folder, a .tar, tars by a glob or braces, such as '/data/shard-*.tar' or "
        "'s3://bucket/shard-{000..012}.tar', or a list of either",
    )
    train: str = Field("", description="subfolder or prefix of the pictures to train on; '' or . = all of data.path")
    val: str | None = Field(None, description="subfolder or prefix of labelled pictures to evaluate on; null = none")
    val_path: PathOrPaths | None = Field(
        None, description="where the pictures to evaluate on are, if not in `path`; null = there"
    )
    labels: str = Field(
        FOLDERS,
        pattern=r"^(folders|\w+(\.\w+)*|(\w+\.)*json:.+)$",
        description="folders, or in tars the files beside pictures (WebDataset): cls, txt, json:KEY, json:KEY.INNER",
    )
    part: str | None = Field(
        None,
        pattern=r"^[^./][^/]*$",
        description="ending of the pictures to use where WebDataset samples have several, such as left.jpg; null = the "
        "plainest of each (jpg before left.jpg), all = every picture",
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
    def _places(self) -> dict[Split, tuple[Paths, str]]:
        """Paths and prefix of each split."""
        places: dict[Split, tuple[Paths, str]] = {"train": (_several(self.path), self.train)}
        if self.has_val:
            places["val"] = _several(self.val_path or self.path), self.val or ""
        return places

    @property
    def _reading(self) -> Reading:
        return Reading(self.labels, self.stray, self.part and self.part.lower(), self.order)

    def _listings(self, index: IndexFolder) -> dict[Split, Listing]:
        stamps = cache(_stamps)  # archives that hold both splits are asked about once
        asked = {
            split: CacheKey(
                f"{self._reading} of {prefix!r} in {_folders(paths) or paths}", partial(_changed, stamps, paths, prefix)
            )
            for split, (paths, prefix) in self._places.items()
        }
        return index.listings(asked, self._scan)

    def _scan(self) -> dict[Split, Listing]:
        # splits of one path at once: the headers of a large tar take minutes to read
        found: dict[Split, Listing] = {}
        for paths in dict.fromkeys(paths for paths, _ in self._places.values()):
            prefixes = {split: prefix for split, (where, prefix) in self._places.items() if where == paths}
            found |= zip(prefixes, _scan(paths, list(prefixes.values()), self._reading), strict=True)
        return found

    def source(self, split: Split, index: IndexFolder) -> Pictures:
        """The pictures of one split.

        Raises:
            UserError: nothing at `path`, no pictures in the split, or an archive that cannot be used (see `scan_tars`).
        """
        (paths, prefix), listing = self._places[split], self._listings(index)[split]
        if not len(listing.pictures):
            raise UserError(_nothing_found(paths, prefix, self._reading, listing.pictures.skipped))
        if listing.files:
            return Pictures(Tars(listing.files, os.fsencode(prefix)), listing, self.target)
        return Pictures(Folder(*_roots(_folders(paths), prefix)), listing, self.target)

    def read_as_one(self, source: Source) -> list[str]:
        return [os.path.join(self.train, readable(folder)) for folder in read_as_one(source)]

    def masks(self) -> SourceConfig:
        """The files below folders of the splits' names with `_masks` behind, of every picture."""
        train, val = (None if prefix is None else f"{prefix}_masks" for prefix in (self.train, self.val))
        return Files(
            path=self.path,
            val_path=self.val_path,
            train=train or "",
            val=val,
            stray="keep",
            part="all",
            max_pixels=self.max_pixels,
        )


def _several(path: PathOrPaths) -> Paths:
    return (path,) if isinstance(path, str) else tuple(path)


def _scan(paths: Paths, prefixes: Sequence[str], how: Reading) -> list[Listing]:
    """What there is below each of the prefixes."""
    if folders := _folders(paths):
        for field, value, fitting in (("labels", how.labels, (FOLDERS,)), ("part", how.part, (ALL, None))):
            if value not in fitting:
                raise UserError(
                    f"data.{field}={value!r} is for tars, and {folders[0]!r} is a folder; expected data.{field}="
                    f"{fitting[0]}"
                )
        return [_listing(_shown(paths, prefix), *_looked_through(_roots(folders, prefix)), how) for prefix in prefixes]
    beside = None if how.labels == FOLDERS else Beside(how.labels)
    shards, found = scan_tars(entries(paths), prefixes, beside, how.part)
    if how.labels == FOLDERS:
        return [
            _listing(_shown(paths, prefix), scan.pictures, None, how, tuple(shards))
            for prefix, scan in zip(prefixes, found, strict=True)
        ]
    return [Listing.of(scan.pictures, *numbered(scan.labels, how.order), tuple(shards), named=True) for scan in found]


def _folders(paths: Paths) -> list[str]:
    """The folders that paths name; none where they name tars.

    Raises:
        UserError: they name both, or something that is not there.
    """
    if any(map(is_remote, paths)):
        return []
    found = entries(paths)
    folders = [path for path in found if os.path.isdir(path)]
    if folders and len(folders) < len(found):
        other = next(path for path in found if path not in folders)
        raise UserError(
            f"{list(paths)} names folders, such as {folders[0]!r}, and archives, such as {other!r}; expected one kind. "
            "Make a mixture of two sources of them"
        )
    return folders


def _looked_through(roots: Sequence[bytes]) -> tuple[Index, Index]:
    """Pictures below folders, and all folders there; each is entered once."""
    entered: set[tuple[int, int]] = set()
    pictures, folders = zip(*(scan_folder(root, entered) for root in roots), strict=True)
    return Index.joined(pictures), Index.joined(folders)


def _listing(where: str, index: Index, folders: Index | None, how: Reading, files: tuple[Stamp, ...] = ()) -> Listing:
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


def _changed(stamps: Callable[[Paths], Sequence[Stamp]], paths: Paths, prefix: str, listing: Listing) -> str | None:
    """What is not as it was when it was listed: a folder, an archive, or which archives there are."""
    if folders := _folders(paths):
        if listing.files:
            return _shown(paths, prefix)
        return changed_folder(_roots(folders, prefix), listing.folders)
    now = stamps(paths)
    if len(now) != len(listing.files):
        return _shown(paths)
    return next((new.path for old, new in zip(listing.files, now, strict=True) if old != new), None)


def _stamps(paths: Paths) -> Sequence[Stamp]:
    """The archives that paths name, as they are now."""
    archives = entries(paths)
    remote = [archive for archive in archives if is_remote(archive)]
    found = dict(zip(remote, identities(remote), strict=True))
    return [Stamp(archive, *(found.get(archive) or local_identity(archive))) for archive in archives]


def _roots(folders: Sequence[str], prefix: str) -> list[bytes]:
    return [os.fsencode(os.path.join(folder, prefix).rstrip("/") or "/") for folder in folders]


def _shown(paths: Paths, prefix: str = "") -> str:
    """Paths for people."""
    return ", ".join(os.path.join(path, prefix).rstrip("/") or "/" for path in paths)


def _nothing_found(paths: Paths, prefix: str, how: Reading, skipped: Counter[str]) -> str:
    problem = f"no pictures in {_shown(paths)!r}"
    if how.part not in (None, ALL):
        problem += f" whose names go on with {how.part!r} after the first dot (data.part)"
    if prefix:
        problem += f" under {prefix!r}; it has {_prefixes(paths) or 'no folders'}"
    others = f"; {in_words(skipped)}" if skipped else ""
    problem = f"{problem}{others}. Expected files ending in {_ENDINGS}"
    return problem + conversion(skipped, _roots(_folders(paths), prefix))


def _prefixes(paths: Paths, most: int = 10) -> str:
    """The first folders that exist at paths, for people."""
    [listing] = _scan(paths, [""], Reading(stray="keep"))
    index = listing.pictures
    names = (index.name(i).partition(b"/") for i in range(len(index)))
    folders = sorted({folder for folder, slash, _ in names if slash})
    shown = [repr(readable(folder)) for folder in folders[:most]]
    return ", ".join([*shown, "..."] if len(folders) > most else shown)
