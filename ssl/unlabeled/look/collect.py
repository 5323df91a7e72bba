"""Images of one or several splits: a few examples, and features with thumbnails of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation, center_crop
from unlabeled.errors import BadSample, UserError
from unlabeled.look.mapping import Described
from unlabeled.look.thumbnails import Thumbs, columns_for, side_for, thumbnail
from unlabeled.look.writing import Examples
from unlabeled.progress import track
from unlabeled.randomness import Stream, stream
from unlabeled.signals import stop

TRIED = 4  # images per example that are tried, where some cannot be used
BATCH = 64


class Prepared(NamedTuple):
    """How images become the encoder's input, as they are evaluated."""

    shape: tuple[int, int]
    crop_pct: float
    interpolation: Interpolation
    normalize: Normalize
    device: torch.device


class Picture(NamedTuple):
    """An image: of which split, and its number there."""

    split: str
    number: int


class Seen(NamedTuple):
    """The centre crop and the thumbnail of an image; None where it cannot be used."""

    row: int
    pixels: Tensor | None
    thumb: Tensor | None


class _Pictures(Dataset[Seen]):
    """Centre crops and thumbnails of chosen images."""

    def __init__(self, splits: Mapping[str, Source], chosen: Sequence[Picture], how: Prepared, side: int) -> None:
        self.splits, self.chosen, self.side = splits, chosen, side
        self.shape, self.crop_pct, self.interpolation = how.shape, how.crop_pct, how.interpolation

    def __getitem__(self, row: int) -> Seen:
        split, number = self.chosen[row]
        try:
            image = self.splits[split].image(number)
        except BadSample:
            return Seen(row, None, None)
        crop = center_crop(image, self.shape, self.crop_pct, self.interpolation)
        return Seen(row, crop, thumbnail(image, self.side))


def examples(source: Source, count: int, how: Prepared, seed: int) -> Examples:
    """The centre crops of up to `count` images that the seed draws. Raises UserError when none can be used."""
    crops: list[Tensor] = []
    for number in _drawn(stream(seed, Stream.LOOK, 0), len(source), TRIED * count).tolist():
        try:
            image = source.image(number)
        except BadSample:
            continue
        crops.append(center_crop(image, how.shape, how.crop_pct, how.interpolation))
        if len(crops) == count:
            break
    if not crops:
        raise UserError(
            "none of the pictures that were drawn can be used. Look at them: `unlabeled doctor` names what is wrong."
        )
    pixels = torch.stack(crops)
    return Examples(pixels, how.normalize(pixels.to(how.device)))


def choose(splits: Mapping[str, Source], most: int, seed: int) -> list[Picture]:
    """Up to `most` images of all splits, drawn by the seed, in the splits' order."""
    names, ends = list(splits), np.cumsum([len(source) for source in splits.values()])
    rows = np.sort(_drawn(stream(seed, Stream.LOOK, 2), int(ends[-1]), most))
    of = np.searchsorted(ends, rows, side="right")
    return [
        Picture(names[split], row - int(ends[split] - len(splits[names[split]])))
        for row, split in zip(rows.tolist(), of.tolist(), strict=True)
    ]


def _drawn(rng: np.random.Generator, n: int, most: int) -> NDArray[np.int64]:
    """Up to `most` numbers below n, each once; `n` may be many millions."""
    return rng.choice(n, min(n, most), replace=False)


@torch.no_grad()
def describe(
    encode: Encode, splits: Mapping[str, Source], chosen: Sequence[Picture], how: Prepared, workers: int, timeout: float
) -> tuple[Described, Thumbs]:
    """Encode chosen images and make their thumbnails. Unusable ones are left out.

    Raises:
        UserError: no image can be used.
        Interrupted: a worker is lost, or gives nothing in time.
    """
    side = side_for(len(chosen))
    batches = [list(range(i, min(i + BATCH, len(chosen)))) for i in range(0, len(chosen), BATCH)]
    loader = make_loader(
        _Pictures(splits, chosen, how, side),
        batches,
        workers=workers,
        device=how.device,
        timeout=timeout,
        collate=_kept,
    )
    rows: list[int] = []
    features: list[Tensor] = []
    thumbs: list[Tensor] = []
    with stop.alone(), Batches(loader) as made:
        for good, pixels, small, _ in track(made, "looking at pictures", len(chosen), lambda batch: batch[3]):
            if good:
                features.append(encode(how.normalize(pixels.to(how.device, non_blocking=True))).float().cpu())
                rows += good
                thumbs.append(small)
    if not rows:
        raise UserError(
            f"none of the {len(chosen)} pictures can be used. Look at them: `unlabeled doctor` names what is wrong."
        )
    used = [chosen[row] for row in rows]
    sheet = Thumbs(torch.cat(thumbs), columns_for(len(rows)))
    return Described(
        torch.cat(features),
        [splits[split].key(number) for split, number in used],
        [_class(splits[split], number) for split, number in used],
        [split for split, _ in used] if len(splits) > 1 else (),
        side,
        len(chosen) - len(rows),
    ), sheet


def _class(source: Source, number: int) -> str:
    label = int(source.labels[number])
    return source.classes[label] if label >= 0 else ""


def _kept(samples: Sequence[Seen]) -> tuple[list[int], Tensor | None, Tensor | None, int]:
    """Rows, crops and thumbnails of the usable ones, and the number of all."""
    good = [(row, pixels, small) for row, pixels, small in samples if pixels is not None and small is not None]
    if not good:
        return [], None, None, len(samples)
    rows, pixels, small = zip(*good, strict=True)
    return list(rows), torch.stack(pixels), torch.stack(small), len(samples)
