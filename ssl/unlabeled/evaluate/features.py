"""Frozen features: every labelled image of a source passes an encoder once, without augmentation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation, center_crop
from unlabeled.errors import BadSample, Stopped, UserError
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.signals import stop

Bad = tuple[str, str]  # key of an image that cannot be used, and the reason
Share = tuple[Tensor | None, list[int], list[int], list[Bad]]  # pixels or features, rows, labels
WORKER_TIMEOUT = 600.0
log = logging.getLogger(__name__)


class Features(NamedTuple):
    """Features x [n, D] float32 and labels y [n] int64, at least 0; `numbers` [n] of the images in their source, None
    where they are not kept."""

    x: Tensor
    y: Tensor
    numbers: Tensor | None = None

    def to(self, device: torch.device) -> Features:
        return Features(self.x.to(device), self.y.to(device))

    def take(self, rows: np.ndarray) -> Features:
        """Select rows [m], in this order."""
        chosen = torch.from_numpy(rows).to(self.y.device)
        return Features(self.x[chosen], self.y[chosen])


class Centred(NamedTuple):
    """The centre crop of one image, or the reason why it cannot be used."""

    row: int
    pixels: Tensor | None
    label: int
    bad: Bad | None


class CentreCrops(Dataset[Centred]):
    """Centre crops of the images `indices` [m] of a source; an image that cannot be used is named instead."""

    def __init__(
        self, source: Source, indices: np.ndarray, shape: tuple[int, int], crop_pct: float, interpolation: Interpolation
    ) -> None:
        self.source, self.indices = source, indices
        self.shape, self.crop_pct, self.interpolation = shape, crop_pct, interpolation

    def __getitems__(self, rows: Sequence[int]) -> list[Centred]:
        """The images of a batch, those that lie far away read side by side."""
        near = copy(self)
        near.source = self.source.ahead(self.indices[list(rows)].tolist())
        return [near[row] for row in rows]

    def __getitem__(self, row: int) -> Centred:
        label = int(self.source.labels[index := int(self.indices[row])])
        try:
            image = self.source.image(index)
        except BadSample as error:
            return Centred(row, None, label, (error.key, error.reason))
        return Centred(row, center_crop(image, self.shape, self.crop_pct, self.interpolation), label, None)


def stack_centred(samples: Sequence[Centred]) -> Share:
    """Stack images: pixels [B, C, h, w], rows and labels of the usable ones, and what is wrong with the others."""
    good = [(pixels, row, label) for row, pixels, label, _ in samples if pixels is not None]
    pixels = torch.stack([one[0] for one in good]) if good else None
    bad = [sample.bad for sample in samples if sample.bad is not None]
    return pixels, [row for _, row, _ in good], [label for _, _, label in good], bad


def extract(
    encode: Encode,
    source: Source,
    *,
    shape: tuple[int, int],
    crop_pct: float,
    interpolation: Interpolation = "bicubic",
    normalize: Normalize,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
    indices: np.ndarray | None = None,
    rank: int = 0,
    world: int = 1,
    timeout: float = WORKER_TIMEOUT,
    reduce: Callable[[Tensor, Tensor], Tensor] | None = None,
    max_bad: float = 1.0,
) -> Features:
    """Encode the labelled images of a source, in its order; the result is the same on every process, on the CPU.

    Leaves out unlabelled images, and logs unusable ones. Each process encodes its own share. Draws nothing from torch's
    random state.

    Args:
        encode: normalised images [B, C, h, w] on `device` to features [B, D]; see `unlabeled.backbone.pooling`.
        shape: (height, width) of the input of `encode`, pixels.
        crop_pct: share of the image that the central crop keeps, see `center_crop`.
        indices: [m] numbers of images; None = all.
        rank, world: this process and the number of processes.
        timeout: seconds to wait for a batch of a worker.
        reduce: features [B, D] and labels [B], on the device, to what is kept of them [B, K]; None = features.
        max_bad: largest share of unusable images, in [0, 1].

    Raises:
        UserError: no image is left, or too few are.
        Interrupted: a worker is lost, or gives nothing in time.
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
    chosen = chosen[source.labels[chosen] >= 0]
    share = range(rank, len(chosen), world)
    batches = [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]
    dataset = CentreCrops(source, chosen, shape, crop_pct, interpolation)
    loader = make_loader(dataset, batches, workers=workers, device=device, timeout=timeout, collate=stack_centred)

    x: list[Tensor] = []
    rows: list[int] = []
    labels: list[int] = []
    bad: list[Bad] = []
    error = None
    try:
        with stop.alone(), Batches(loader) as made:
            images = track(made, "encoding images", len(share), lambda batch: len(batch[1]) + len(batch[3]))
            for pixels, batch_rows, batch_labels, batch_bad in images:
                if pixels is not None:
                    made_of = encode(normalize(pixels.to(device, non_blocking=True))).float()
                    kept = made_of if reduce is None else reduce(made_of, torch.tensor(batch_labels, device=device))
                    x.append(kept.cpu())
                rows += batch_rows
                labels += batch_labels
                bad += batch_bad
    except (Exception, Stopped) as caught:  # the other processes wait to hear of any error
        error = caught
    raise_together(error)
    own: Share = torch.cat(x) if x else None, rows, labels, bad
    return _whole(gather_objects(own) if world > 1 else [own], source, chosen, max_bad)


def _whole(shares: list[Share], source: Source, chosen: np.ndarray, max_bad: float) -> Features:
    """Put the shares of all processes together, in order of the rows."""
    unusable = [bad for share in shares for bad in share[3]]
    if unusable:
        log.warning(
            "evaluation leaves out %d of %d pictures, the first: %s", len(unusable), len(chosen), ": ".join(unusable[0])
        )
    if len(unusable) > max_bad * len(chosen):
        raise UserError(
            f"{len(unusable)} of {len(chosen)} labelled pictures cannot be used, more than data.max_bad_fraction "
            f"{max_bad:g} allows; the first: {': '.join(unusable[0])}. Mend or remove them, or a table's paths, "
            "or raise data.max_bad_fraction."
        )
    parts = [share[0] for share in shares if share[0] is not None]
    if not parts:
        raise UserError(
            f"evaluation found no labelled picture that can be used ({len(unusable)} cannot be read). "
            "Point it at data with labels, or switch it off with evaluate=null."
        )
    order = torch.tensor([row for share in shares for row in share[1]]).argsort()
    y = torch.tensor([label for share in shares for label in share[2]])
    if lost := sorted(set(source.labels[chosen].tolist()) - set(y.tolist())):
        log.warning(
            "no picture of %d classes can be used, such as %r: scores say nothing of them. Mend those pictures, or the "
            "paths of the table",
            len(lost),
            source.classes[lost[0]],
        )
    numbers = torch.tensor([chosen[row] for share in shares for row in share[1]])
    return Features(torch.cat(parts)[order], y[order], numbers[order])
