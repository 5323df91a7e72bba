"""Whatever lies at an address: a network with its weights, its preprocessing, and the heads that stood on it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from unlabeled.backbone.build import family_of
from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing, opened, outline, read_weights, steady
from unlabeled.backbone.folder import check_fits as check_weights
from unlabeled.backbone.outside import split_address
from unlabeled.backbone.weights import (
    IMAGENET,
    OFFICIAL,
    bare_arguments,
    load_encoder,
    load_weights,
    preprocessing_of,
    read_official,
)
from unlabeled.errors import UserError
from unlabeled.nn.modes import without_values
from unlabeled.nn.positions import Grid
from unlabeled.paths import expand

Adapt: TypeAlias = Sequence[Literal["size", "channels"]]
FRESH = 2_000_000_000  # nanoseconds
HEADS = "heads.safetensors"
PARTS = ("config.json", "model.safetensors", HEADS)  # of an export


class Found(NamedTuple):
    """The content of an address.

    Attributes:
        encoder: at its own size, with its weights.
        how: its preprocessing.
        heads: the rest of the state of the method that made it, by name; {} = there is none.
        left: names of weights that are not the encoder's: of a classifier's head.
        notes: how weights of the encoder were come by, in words, where they were not there under their names.
    """

    encoder: Encoder
    how: Preprocessing
    heads: Tensors = {}  # noqa: RUF012 - never changed
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@steady
def find(path: str | Path) -> Found:
    """Read the weights at an address that `load_encoder` takes, and those of a classifier without its head.

    Files are read once as long as they stay the same: nobody may change what is returned. Raises UserError when nothing
    loadable is there, or its weights are random.
    """
    where = expand(str(path))
    if where.startswith("scratch:"):
        raise UserError(f"{where} has random weights: there is nothing to begin with. Name weights that were trained.")
    if where.startswith("timm:"):
        return Found(load_encoder(where), preprocessing_of(where))
    folder = Path(split_address(where)[1])
    parts = [Path(where.rpartition(":")[2])] if where.endswith(OFFICIAL) else [folder / name for name in PARTS]
    return _read(where, tuple(_identity(file) for file in parts))


def _identity(file: Path) -> tuple[int, ...]:
    """Equal as long as a file stays the same; a clock is too coarse to tell when it has just been written."""
    with suppress(OSError):
        status, now = file.stat(), time.time_ns()
        just = (now,) if now - status.st_mtime_ns < FRESH else ()
        return (status.st_ino, status.st_size, status.st_mtime_ns, *just)
    return ()


@lru_cache(maxsize=1)
def _read(where: str, _: tuple[tuple[int, ...], ...]) -> Found:
    if where.endswith(OFFICIAL):
        imported, family = read_official(where)
        size = tuple(imported.arguments["img_size"])
        how = IMAGENET._replace(interpolation=family.interpolation, pool=imported.pool, size=size)
        return Found(load_weights(imported.architecture, imported.arguments, imported.encoder), how, imported.heads)
    folder, config = opened(where)
    if config["num_classes"]:
        return _classifier(where, folder, config)
    encoder, how, heads = load_encoder(where), preprocessing_of(where), folder / HEADS
    if config.get("linear_head"):
        return Found(encoder, how, left=("a linear head",))
    return Found(encoder, how, read_weights(heads) if os.path.lexists(heads) else {})


def _classifier(where: str, folder: Path, config: dict[str, Any]) -> Found:
    """The backbone of a classifier. A norm that came after its pooling takes the place of the final norm."""
    weights = read_weights(folder / "model.safetensors")
    check_weights(outline(folder, config), weights)
    architecture, arguments = config["architecture"], bare_arguments(config)
    weights = family_of(architecture).of_classifier(weights)
    with without_values():
        own = load_weights(architecture, arguments).vit.state_dict()
    moved = {name: f"fc_{name}" for name in own if name not in weights and f"fc_{name}" in weights}
    taken = {name: weights[moved.get(name, name)] for name in own if moved.get(name, name) in weights}
    left = tuple(sorted(weights.keys() - own.keys() - set(moved.values())))  # a file has no order
    notes = ("the final norm is the one that came after its pooling",) if moved else ()
    return Found(load_weights(architecture, arguments, taken), preprocessing_of(where), left=left, notes=notes)


def check_adapt(encoder: Encoder, shape: Grid, channels: int, adapt: Adapt, fields: Sequence[str]) -> None:
    """Raise UserError when an encoder must be fitted to images in a way that `adapt` does not name.

    Args:
        shape: (height, width) of the images, pixels.
        fields: of the recipe that say so.
    """
    if encoder.channels != channels and "channels" not in adapt:
        raise UserError(
            f"the encoder sees {encoder.channels} channels, the pictures have {channels} (the values of data.mean and "
            "data.std). Give both as many values as it has channels, or set adapt=[channels] to sum or repeat its "
            "first layer."
        )
    same = not encoder.sized(encoder.model) or encoder.image_size == shape
    if not same and "size" not in adapt:
        height, width = encoder.image_size
        raise UserError(
            f"the encoder was trained at {height}x{width} pixels, {fields[0]} is {shape[0]}x{shape[1]}. Set "
            f"{' '.join(f'{field}=[{height},{width}]' for field in fields)}, or adapt=[size] to resample its positions."
        )
