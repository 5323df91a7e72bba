"""Weights at hand: in the local cache of Hugging Face, or exports of earlier runs. Nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from unlabeled.backbone.build import family_of
from unlabeled.backbone.folder import opened
from unlabeled.errors import UserError
from unlabeled.recipe import said
from unlabeled.start.facts import Kind

PREFIX = "models--timm--"
FILES = ("model.safetensors", "pytorch_model.bin")
# parts of the names of weights that learnt without labels, the best first
SELF_SUPERVISED = ("dinov3", "dinov2", "dino", "ibot", "mae", "moco", "clip")
BYTES = 4e6  # of a million parameters


class Weights(NamedTuple):
    """An encoder that has learnt.

    Attributes:
        address: as `init` takes it.
        kind: see `unlabeled.start.facts.Facts.weights`.
        millions: of parameters.
        patch: sides of crops are multiples of it, pixels.
        why: how it was found, in words.
    """

    address: str
    kind: Kind
    millions: float
    patch: int
    why: str


def at_hand(path: str, most: float) -> list[Weights]:
    """Encoders to begin with, the best first: of earlier runs on the pictures at `path`, then timm's, those with at
    most `most` million parameters before others, those that learnt without labels before others, then the largest."""
    cached = sorted(_cached(), key=lambda one: (one.millions > most, _rank(one.address), -one.millions))
    return [*_earlier(path), *cached]


def earlier_runs() -> list[str]:
    """The exports of pretraining under ./runs, the newest first."""
    found = [file.parent for file in Path("runs").glob("*/export/config.json") if "method" in _recipe(file.parent)]
    return [str(folder) for folder in sorted(found, key=lambda folder: -folder.stat().st_mtime)]


def _recipe(export: Path) -> dict[str, Any]:
    """What the recipe of an export says; nothing where there is none."""
    with suppress(UserError):
        return said(export.parent / "recipe.yaml")
    return {}


def _earlier(path: str) -> Iterator[Weights]:
    for export in earlier_runs():
        with suppress(UserError, OSError):
            data = _recipe(Path(export)).get("data")
            if isinstance(data, dict) and isinstance(data.get("path"), str) and _same(data["path"], path):
                _, config = opened(export)
                size = os.path.getsize(Path(export) / FILES[0])
                yield from _described(export, str(config["architecture"]), size, "an earlier run on these pictures")


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _cached() -> Iterator[Weights]:
    """timm's weights in the cache of Hugging Face."""
    import timm
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{PREFIX}*")):
        name = folder.name.removeprefix(PREFIX)
        files = [file for end in FILES for file in folder.glob(f"snapshots/*/{end}") if file.is_file()]
        if files and timm.is_model(name.split(".")[0]):
            size = files[0].stat().st_size
            yield from _described(f"timm:{name}", name.split(".")[0], size, "it is in the cache of Hugging Face")


def _described(address: str, architecture: str, size: int, why: str) -> Iterator[Weights]:
    """The network at an address, from its name and the bytes of its weights; nothing where crops of any size do not
    suit it."""
    family = family_of(architecture)
    kind: Kind = "sized" if family.sized(architecture) else "free"
    if kind == "sized" and not family.can_read(architecture, "cls", 1):
        return
    patch = family.crop_multiple(architecture, family.patch_size_of(architecture))
    yield Weights(address, kind, size / BYTES, patch, why)


def _rank(address: str) -> int:
    tag = address.partition(".")[2] or address
    return next((i for i, part in enumerate(SELF_SUPERVISED) if part in tag), len(SELF_SUPERVISED))
