"""Images made smaller once and for all: tars of small JPEGs or plain `.npy` arrays, as `prepare` writes them.

    FOLDER/prepared.json       what was asked for, of which images
    FOLDER/train-00000.tar     000000000.npy 000000001.npy ...: any program can read them
    FOLDER/train.safetensors   where each lies, its key in the source, its label

The folder stands on its own: the originals need not be there any more, and it may be moved.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from unlabeled.data.archive import listing
from unlabeled.data.archive.index import Index
from unlabeled.data.archive.listing import Listing, Split, digest
from unlabeled.data.archive.pictures import Pictures, Tars
from unlabeled.data.archive.storing import Settings
from unlabeled.data.decoding.bands import Target
from unlabeled.data.source import AFTERWARDS, MAX_PIXELS, SourceConfig
from unlabeled.errors import UserError
from unlabeled.files import write_text
from unlabeled.paths import expand
from unlabeled.recipe.free import marked

RECORD = "prepared.json"
ASKED = "prepared"


class Record(BaseModel, frozen=True, extra="forbid"):
    """`prepared.json`."""

    settings: Settings  # how images were stored
    data: dict[str, Any]  # the recipe's `data:` section, as far as it decides which images they are
    fingerprints: dict[Split, str]  # of the source's splits

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder, None where there is none. Raises UserError when it cannot be understood."""
        file = folder / RECORD
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise UserError(f"{file} is damaged: remove {folder} and prepare it again") from error

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        write_text(folder / RECORD, self.model_dump_json(indent=2) + "\n")


class PreparedTars(Tars):
    """Reads prepared images; they keep the keys that they had in their source."""

    def path(self, index: Index, i: int) -> bytes:
        return index.name(i)


def index_file(folder: Path, split: Split) -> Path:
    """Path of the index of a split; it is written last."""
    return folder / f"{split}.safetensors"


def which(data: SourceConfig) -> dict[str, Any]:
    """The fields of a `data:` section that decide its images and the meaning of their values."""
    unused = {"split_seed"} if data.share is None else set()
    said = data.model_dump(mode="json", exclude=marked(type(data), AFTERWARDS) | unused)
    return {**said, "channels": data.channels}


def open_prepared(data: SourceConfig, folder: Path, split: Split) -> Pictures:
    """A split of a prepared folder. Raises UserError when it is not prepared, not to its end, for other images, or
    damaged."""
    record = Record.read(folder)
    found = listing.read(index_file(folder, split), ASKED)
    again = f"Run `unlabeled prepare RECIPE data.cache={folder}`"
    if record is None or found is None:
        state = "has not been prepared" if record is None else f"lacks {split}.safetensors or has a damaged one"
        raise UserError(f"data.cache={str(folder)!r} {state}. {again}, or set data.cache=null.")
    # paths of older records have `~` in them
    said = {name: expand(value) if isinstance(value, str) else value for name, value in record.data.items()}
    if others := different(said, which(data)):
        raise UserError(
            f"data.cache={str(folder)!r} was prepared from other pictures: {others}. {again} to another folder."
        )
    if data.numbering is not None:
        found = found.renumbered(data.numbering)
    return Pictures(PreparedTars(_located(folder, found), b""), found, Target(MAX_PIXELS, data.channels))


def different(prepared: dict[str, Any], asked: dict[str, Any]) -> str:
    """The fields of two `data:` sections that differ, for people; '' = none."""
    names = [name for name in {**prepared, **asked} if prepared.get(name) != asked.get(name)]
    return ", ".join(f"{name} was {prepared.get(name)!r} and is {asked.get(name)!r}" for name in names)


def fingerprint(source: str, settings: Settings) -> str:
    """Fingerprint of prepared images from the source's and the settings, whatever the shards."""
    return digest([source.encode(), settings.model_dump_json(exclude={"shard"}).encode()])


def _located(folder: Path, found: Listing) -> list[listing.Stamp]:
    """The tars where they are now, as they were written; copying changes their dates. Raises UserError when one is
    missing or cut short."""
    stamps = []
    for name, size, _ in found.files:
        path = str(folder / name)
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. Prepare {folder} again.") from error
        if status.st_size != size:
            raise UserError(f"{path} has {status.st_size:,} bytes, expected {size:,}. Prepare {folder} again.")
        stamps.append(listing.Stamp(path, size, str(status.st_mtime_ns)))
    return stamps


def summary(folder: Path) -> str:
    """A prepared folder in a few words."""
    record = Record.read(folder)
    settings = Settings() if record is None else record.settings
    kind = "raw" if settings.format == "raw" else f"JPEG {settings.quality}"
    return f"{folder}, short side {settings.short_side}, {kind}"
