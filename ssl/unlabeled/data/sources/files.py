"""Images in folders or tars, read where they lie."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache, partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from unlabeled.data.archive.index import readable
from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split
from unlabeled.data.archive.paths import Paths, entries
from unlabeled.data.archive.pictures import Folder, Pictures, Tars
from unlabeled.data.archive.places import (
    FOLDERS,
    Reading,
    Stray,
    changed,
    folders_of,
    nothing_found,
    roots_of,
    scan_places,
    stamps_of,
)
from unlabeled.data.archive.remote import CONNECTIONS
from unlabeled.data.archive.sharded import ByShard, Sharded, Shards
from unlabeled.data.label.overlap import HELD_OUT, LEARNT, read_as_one
from unlabeled.data.source import AFTERWARDS, EncodedConfig, Source, SourceConfig
from unlabeled.errors import UserError
from unlabeled.paths import UserPath
from unlabeled.recipe.free import FREE

PathOrPaths = UserPath | Annotated[tuple[UserPath, ...], Field(min_length=1)]


class Config(EncodedConfig):
    """Images in folders or in uncompressed tars.

    Labels are the first folder below the split, or what files beside the images of a tar say; images that all lie right
    below the split are unlabelled. Hidden files and files with other endings than those of images are passed over.
    """

    what_val_is: ClassVar[str] = "the folder of labelled pictures, such as data.val=val"

    name: Literal["files"] = "files"
    path: Annotated[PathOrPaths, FREE] = Field(
        description="a folder, a .tar, tars by a glob or braces, such as '/data/shard-*.tar' or "
        "'s3://bucket/shard-{000..012}.tar', or a list of either"
    )
    train: str = Field("", description="subfolder or prefix of the images to train on; '' or . = all of data.path")
    val: str | None = Field(None, description="subfolder or prefix of labelled images to evaluate on; null = none")
    val_path: Annotated[PathOrPaths | None, FREE] = Field(
        None, description="where the images to evaluate on are, if not in `path`; null = there"
    )
    labels: str = Field(
        FOLDERS,
        pattern=r"^(folders|\w+(\.\w+)*|(\w+\.)*json:.+)$",
        description="folders, or in tars the files beside images (WebDataset): cls, txt, json:KEY, json:KEY.INNER; or "
        "manifest, of tars beside which `unlabeled prepare` has written one",
    )
    part: str | None = Field(
        None,
        pattern=r"^[^./][^/]*$",
        description="ending of the images to use where WebDataset samples have several, such as left.jpg; null = the "
        "plainest of each (jpg before left.jpg), all = every image",
    )
    stray: Stray = Field(
        "error",
        description="what becomes of images that lie beside the folders of classes: error = stop and name them, skip "
        "= leave them out, keep = use them without a label",
    )

    connections: Annotated[int, FREE, AFTERWARDS] = Field(
        CONNECTIONS,
        ge=1,
        le=100,
        description="pictures on https://, s3:// and the like that a worker asks for at once",
    )

    by_shard: Annotated[ByShard | None, AFTERWARDS] = Field(
        None,
        description="how the index of each tar is kept by itself and opened when it is read, for more pictures than "
        "one index should list, say 10^8; null = one index of all",
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
    def _val_outside_train(self) -> Config:
        within = f"{self.train}/" if self.train else ""
        if self.val is not None and self.val_path is None and self.val != self.train and self.val.startswith(within):
            raise ValueError(
                f"val={self.val!r} lies inside train={self.train!r}, so pictures to evaluate on would be "
                f"trained on; expected folders side by side, such as train=train val=val"
            )
        return self

    @property
    def names_val(self) -> bool:
        return self.val is not None or self.val_path is not None

    @property
    def _places(self) -> dict[Split, tuple[Paths, str]]:
        """Paths and prefix of each split."""
        places: dict[Split, tuple[Paths, str]] = {"train": (_several(self.path), self.train)}
        if self.names_val:
            places["val"] = _several(self.val_path or self.path), self.val or ""
        return places

    @property
    def _reading(self) -> Reading:
        return Reading(self.labels, self.stray, self.part and self.part.lower(), self.numbering)

    def _listings(self, index: IndexFolder) -> dict[Split, Listing]:
        stamps = cache(stamps_of)  # archives that hold both splits are asked about once
        asked = {
            split: CacheKey(
                f"{self._reading} of {prefix!r} in {folders_of(paths) or paths}",
                partial(changed, stamps, paths, prefix),
            )
            for split, (paths, prefix) in self._places.items()
        }
        return index.listings(asked, self._scan)

    def _scan(self) -> dict[Split, Listing]:
        # splits of one path at once: the headers of a large tar take minutes to read
        found: dict[Split, Listing] = {}
        for paths in dict.fromkeys(paths for paths, _ in self._places.values()):
            prefixes = {split: prefix for split, (where, prefix) in self._places.items() if where == paths}
            found |= zip(prefixes, scan_places(paths, list(prefixes.values()), self._reading), strict=True)
        return found

    def source(self, split: Split, index: IndexFolder) -> Source:
        """The images of one split. Raises UserError when `path` or the split has no images, or an archive
        cannot be used (see `scan_tars`)."""
        if self.by_shard is not None:
            return self._sharded(split, index, self.by_shard)
        (paths, prefix), listing = self._places[split], self._listings(index)[split]
        if not len(listing.pictures):
            raise UserError(self._nothing(split, listing.pictures.skipped))
        if listing.files:
            return Pictures(Tars(listing.files, os.fsencode(prefix), self.connections), listing, self.target)
        return Pictures(Folder(*roots_of(folders_of(paths), prefix)), listing, self.target)

    def _sharded(self, split: Split, index: IndexFolder, how: ByShard) -> Sharded:
        paths, prefix = self._places[split]
        if folders := folders_of(paths):
            raise UserError(f"data.by_shard is for tars, and {folders[0]!r} is a folder. Set data.by_shard=null")
        shards = Shards(entries(paths), prefix, self._reading, split, index, how.folder)
        table = shards.table(stamps_of(paths)).numbered(self._reading, paths[0])
        if not table.counts.any():
            raise UserError(self._nothing(split, table.skipped))
        return Sharded(shards, table, how.open, self.target, self.connections)

    def _nothing(self, split: Split, skipped: Counter[str]) -> str:
        """Say that a split has no images."""
        instead = {"data.train": ".", "data.val": "null", "data.val_path": "null"}
        asked = {name: value for name, value in instead.items() if getattr(self, name.removeprefix("data."))}
        return nothing_found(*self._places[split], self._reading, skipped, asked)

    def as_flat(self) -> dict[str, str]:
        if not self.train or not isinstance(self.path, str) or not os.path.isdir(self.path):
            return {}
        folders = {entry.name for entry in os.scandir(self.path) if entry.is_dir() and not entry.name.startswith(".")}
        splits = {self.train.partition("/")[0], *LEARNT, *HELD_OUT}
        return {"train": "."} if len(folders) > 1 and not {*folders, *map(str.lower, folders)} & splits else {}

    def read_as_one(self, source: Source) -> list[str]:
        return [os.path.join(self.train, readable(folder)) for folder in read_as_one(source)]

    def masks(self) -> SourceConfig:
        """The files below folders of the splits' names with `_masks` behind, of every image."""
        train, val = (None if prefix is None else f"{prefix}_masks" for prefix in (self.train, self.val))
        return Config(
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
