"""An encoder with its preprocessing, as its export says unless a command is told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.errors import UserError


class Prepared(NamedTuple):
    """An encoder and its preprocessing.

    Attributes:
        encoder: at the size that `how` says.
        how: nothing in it is None but `value_range`.
        words: every value and where it comes from, for people.
    """

    encoder: Encoder
    how: Preprocessing
    words: str


def prepare(path: str, size: int | None = None, **told: Any) -> Prepared:
    """Load an encoder and its preprocessing.

    Args:
        path: as of `load_encoder`.
        size: side of square images, pixels; None = as exported.
        told: other values of `crop_pct` and `pool`; None = as exported.

    Raises:
        UserError: there is no such encoder, or it sees other channels than its export normalises.
    """
    encoder, exported = load_encoder(path, size), preprocessing_of(path)
    if encoder.channels != len(exported.mean):
        raise UserError(
            f"{path} sees {encoder.channels} channels, but pictures would be normalised in {len(exported.mean)}. Write "
            f"{encoder.channels} values each of mean and std into the pretrained_cfg of its config.json."
        )
    exported = exported._replace(pool=exported.pool or encoder.default_pool, size=encoder.image_size)
    changed = {name: value for name, value in told.items() if value is not None}
    how = exported._replace(**changed)
    return Prepared(encoder, how, in_words(how, [*changed, *(["size"] if size else [])]))


def in_words(how: Preprocessing, told: list[str]) -> str:
    """A line such as `size 224, bicubic, mean pooling: from the export; crop 0.9: as told`."""
    height, width = how.size or (0, 0)

    def numbers(values: Sequence[float]) -> str:
        return "/".join(f"{value:.3g}" for value in values)

    words = {
        "size": f"size {height}" if height == width else f"size {height}x{width}",
        "crop_pct": f"crop {how.crop_pct:g}",
        "interpolation": how.interpolation,
        "pool": f"{(how.pool or '').replace('_', ' and ')} pooling",
        "mean": f"mean {numbers(how.mean)}",
        "std": f"std {numbers(how.std)}",
    }
    exported = ", ".join(text for name, text in words.items() if name not in told)
    otherwise = ", ".join(text for name, text in words.items() if name in told)
    return f"{exported}: from the export" + (f"; {otherwise}: as told" if otherwise else "")
