"""Features of random views of images, which depend on the seed and the number of the image alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.loader import Normalize, ViewDataset, collate, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.workers import Batches
from unlabeled.data.view.views import View
from unlabeled.errors import Stopped, UserError
from unlabeled.evaluate.splits import Splits
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.randomness import Stream, stream
from unlabeled.signals import stop

JITTER = (0.4, 0.4, 0.2, 0.1)


class _Share(NamedTuple):
    """The share of one process: numbers of images, and their features [m, q, D]."""

    rows: list[int]
    features: list[Tensor]


def default_view(channels: int) -> View:
    """Random resized crops and flips; of RGB also the colour jitter that DINO and iBOT have."""
    return View(scale=(0.2, 1.0), jitter=JITTER if channels == 3 else None)


def choose(n: int, most: int, seed: int) -> np.ndarray:
    """Numbers below n, at most `most`, at random and sorted; they depend on nothing else."""
    return np.sort(stream(seed, Stream.AUGMENTED).permutation(n)[:most])


def view_features(encode: Encode, splits: Splits, view: View, most: int, seed: int) -> Tensor:
    """Features [n, q, D] of q = `view.count` views of each of at most `most` test pictures; the same on every process.

    A picture's views depend on the seed and its number alone. Pictures that cannot be used are left out. Each process
    encodes its own share. Draws nothing from torch's random state.

    Args:
        encode: normalised images [B, C, h, w] to features [B, D].
        splits: the test pictures are those of their second source.
        view: without a mask.
        most: how many pictures; they are chosen by the seed.
        seed: of choice and views.

    Raises:
        UserError: fewer than two pictures are left.
    """
    source = splits.sources[1]
    chosen = choose(len(source), most, seed)[splits.rank :: splits.world]
    size = max(1, splits.preparation.batch_size // view.count)
    batches = [[Position(0, int(i)) for i in chosen[start : start + size]] for start in range(0, len(chosen), size)]
    share = _Share([], [])
    error = None
    try:
        with stop.alone():
            _encode(encode, splits, ViewDataset(source, [view], 1, seed), batches, share)
    except (Exception, Stopped) as caught:  # whatever it is, the other processes are waiting to hear of it
        error = caught
    raise_together(error)
    return _whole(gather_objects(share) if splits.world > 1 else [share])


def _encode(encode: Encode, splits: Splits, dataset: ViewDataset, batches: list[list[Position]], share: _Share) -> None:
    device = splits.device
    normalize = Normalize(splits.data.config.mean, splits.data.config.std, device)
    loader = make_loader(
        dataset, batches, workers=splits.workers, device=device, timeout=splits.timeout, collate=collate
    )
    with Batches(loader) as made:
        pairs = zip(batches, made, strict=True)
        for asked, raw in track(pairs, "views of images", sum(map(len, batches)), lambda pair: len(pair[0])):
            [view] = to_device(raw, device, normalize).views
            features = encode(view.pixels.transpose(0, 1).flatten(0, 1)).float().cpu()
            # in place of a picture that cannot be used the next one was given
            good = raw.index == torch.tensor([position.index for position in asked])
            share.rows.extend(raw.index[good].tolist())
            share.features.append(features.unflatten(0, (len(asked), -1))[good])


def _whole(shares: list[_Share]) -> Tensor:
    rows = torch.tensor([row for share in shares for row in share.rows])
    if len(rows) < 2:
        raise UserError(f"{len(rows)} of the test pictures can be used, expected at least 2 to compare views of.")
    return torch.cat([part for share in shares for part in share.features])[rows.argsort()]
