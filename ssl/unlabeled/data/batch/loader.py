"""From a source to batches on the device: samples are made in workers, colour and scale change on the device."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.groups import Groups
from unlabeled.data.batch.sampler import SHUFFLE, EpochSampler, Order, Position
from unlabeled.data.batch.samples import RawBatch, Sample, collate
from unlabeled.data.batch.workers import (
    Batches,
    end_where_batches_cannot_be_sent,
    forgive_who_hangs_up,
    listen_to_nobody,
)
from unlabeled.data.mask import Place
from unlabeled.data.order import EpochOrder
from unlabeled.data.source import Source
from unlabeled.data.view import percrop, recolour
from unlabeled.data.view.augment import erase_
from unlabeled.data.view.cutting import cut
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.photometric import Photometric
from unlabeled.data.view.views import Crops, View
from unlabeled.errors import BadSample, Stopped, UserError
from unlabeled.nn.mixing import Mix
from unlabeled.randomness import Stream, stream
from unlabeled.signals import stop
from unlabeled.text import one_line

BAD_IN_A_ROW = 64
AHEAD = 32  # batches that are made ahead, or two for each worker where that is more
UNMIXED = Mixing()


def sample_rng(seed: int, epoch: int, index: int, turn: int = 0) -> np.random.Generator:
    """The one generator behind everything random about a sample; `turn` where it comes more than once in an epoch."""
    again = (turn,) if turn else ()
    return stream(seed, Stream.SAMPLE, epoch, index, *again)


@dataclass(eq=False)
class ViewDataset(Dataset[Sample]):
    """Samples of a source cut into views. A bad image is replaced by the next good one of the source.

    Images of the first view are mixed with their neighbours; `order` says which make up an epoch, None = each once,
    `base` which comes when, `groups` which make up each batch. Where they stay `uncut`, images are handed on whole,
    with what was drawn for their crops.
    """

    source: Source
    views: Sequence[View]
    patch: int  # side of a patch, pixels (for masks)
    seed: int
    mixing: Mixing = UNMIXED
    order: Order | None = None
    base: EpochOrder = SHUFFLE
    uncut: bool = False
    groups: Groups | None = None

    def __post_init__(self) -> None:
        self.masked_crops = sum(view.count for view in self.views if view.mask is not None)

    @property
    def unit(self) -> int:
        """Samples of a micro-batch come in multiples of so many."""
        return 1 if self.groups is None else self.groups.period

    def __getitems__(self, positions: Sequence[Position]) -> list[Sample]:
        """The samples of a batch, images that lie far away read side by side."""
        near = copy(self)
        near.source = self.source.ahead([position.index % len(self.source) for position in positions])
        return [near[position] for position in positions]

    def __getitem__(self, position: Position) -> Sample:
        image, used, bad = self._good_image(position.index)
        mix = self.mixing.draw(position, self.views[0].shape, self.seed) if self.mixing.on else None
        crops, label = self._crops(image, position), self.source.label(used)
        truth = self.source.truth(used)
        return Sample(crops, label, used, bad, mix, image if self.uncut else None, truth)

    def _crops(self, image: Tensor, position: Position) -> list[Crops]:
        rng = sample_rng(self.seed, position.epoch, position.index, position.turn)
        place = Place(self.seed, position.step, position.row, position.batch, 0, self.masked_crops)
        views = [view.at(self.seed, position.step) for view in self.views]
        crops, begun = [], {view.again: rng for view in views if view.again is not None}
        seen = self.groups.views[position.turn] if self.groups is not None and self.groups.views else len(views)
        for number, view in enumerate(views):
            if number >= seen:
                crops.append(view.blank(image, uncut=self.uncut))
                continue
            if number in begun:
                begun[number] = deepcopy(rng)
            drawn = rng if view.again is None else begun[view.again]
            crops.append(view.sample(image, drawn, self.patch, place, uncut=self.uncut))
            if view.mask is not None:
                place = place.after(view.count)
        return crops

    def _good_image(self, index: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        bad: list[tuple[str, str]] = []
        used = index
        for _ in range(min(BAD_IN_A_ROW, len(self.source))):
            try:
                return self.source.image(used), used, bad
            except BadSample as error:
                bad.append((error.key, error.reason))
            used = self.source.stand_in(used)
        last = one_line(": ".join(bad[-1]))
        raise UserError(
            f"{len(bad)} pictures in a row cannot be used, the last: {last}. Look at them, and at data.path."
        )


class Normalize:
    """Pixels in [0, 255] to (x / 255 - mean) / std per channel, float32, on the device; and back."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        mean_, std_ = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.scale = (1 / (255 * std_)).float().to(device)
        self.shift = (-mean_ / std_).float().to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [..., C, H, W] in [0, 255], uint8 or float, to normalised float32."""
        # on a CPU `addcmul` takes twice as long: it is slow where it broadcasts
        return pixels.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def undo(self, pixels: Tensor) -> Tensor:
        """Normalised float [..., C, H, W] to uint8, saturated."""
        return ((pixels - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)


def to_device(raw: RawBatch, device: torch.device, normalize: Normalize) -> Batch:
    """Move a micro-batch to the device and finish it: views [count, B, C, H, W] normalised, masks likewise."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True).transpose(0, 1)

    views = []
    images = None if raw.images is None else raw.images.to(device, non_blocking=True)
    for pixels, mask, colours, erased, blurred, how in raw.crops:
        uncoloured = move(pixels)
        if how is not None and images is not None:
            uncoloured = cut(images, uncoloured, pixels[..., 5:7].transpose(0, 1), how, len(normalize.scale))
        finished = normalize(uncoloured) if colours is None else _recoloured(uncoloured, colours, blurred, normalize)
        if erased is not None:
            erase_(finished, erased)
        hidden = None if mask is None else int(mask.hidden.sum())  # still on the host: nothing is waited for
        views.append(ViewBatch(finished, None if mask is None else mask.map(move), hidden))
    labels, index = (tensor.to(device, non_blocking=True) for tensor in (raw.labels, raw.index))
    mix = None if raw.mix is None else Mix(*(tensor.to(device, non_blocking=True) for tensor in raw.mix))
    truth = None if raw.truth is None else raw.truth.to(device, non_blocking=True)
    boxes = None if raw.boxes is None else raw.boxes.to(device)
    classes = None if raw.pixel_labels is None else raw.pixel_labels.to(device, non_blocking=True)
    moves = None if raw.moves is None else raw.moves.to(device, non_blocking=True)
    return Batch(views, labels, index, mix, truth, boxes, classes, moves)


def _recoloured(pixels: Tensor, drawn: Photometric, blurred: Tensor | None, normalize: Normalize) -> Tensor:
    """Views [count, B, C, H, W] on the device recoloured in the way that suits it, and normalised. What was drawn has
    leading axes [B, count] and is on the host, which thereby knows how many are `blurred`."""
    drawn = drawn.map(lambda tensor: tensor.transpose(0, 1))
    if pixels.device.type != "cpu":
        return recoloured_at_once(pixels, drawn, blurred, normalize)
    crops, drawn = pixels.flatten(0, 1), drawn.map(lambda tensor: tensor.flatten(0, 1))
    return percrop.recolour_and_normalize(crops, drawn, normalize.scale, normalize.shift).view_as(pixels)


def recoloured_at_once(pixels: Tensor, drawn: Photometric, blurred: Tensor | None, normalize: Normalize) -> Tensor:
    """As `_recoloured`, all crops together, which suits a GPU; what was drawn has leading axes [count, B]."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(pixels.device, non_blocking=True)

    which = None if blurred is None else move(blurred)
    return recolour.recolour_and_normalize(pixels, drawn.map(move), which, normalize.scale, normalize.shift)


def _begin(_worker: int) -> None:
    listen_to_nobody()
    forgive_who_hangs_up()
    end_where_batches_cannot_be_sent()


def make_loader(
    dataset: Dataset[Any], batches: Iterable[Any], *, workers: int, device: torch.device, timeout: float, collate: Any
) -> DataLoader[Any]:
    """A DataLoader over batches of positions. Its own generator keeps it from consuming the program's random state."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        # so that many workers do not fill the memory with batches
        prefetch_factor=max(2, min(4, AHEAD // workers)) if workers else None,
        timeout=timeout if workers else 0,
        worker_init_fn=_begin,
        # torch's workers watch their parent to end with it: that must be this process, not a fork server
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(0),
    )


class Feed:
    """The micro-batches of each step, with the seconds spent waiting for them. It ends where they cannot be had."""

    def __init__(
        self, dataset: ViewDataset, sampler: EpochSampler, *, workers: int, timeout: float, device: torch.device
    ) -> None:
        self.accumulate, self.left, self.waited = sampler.accumulate, sampler.total_steps - sampler.start, 0.0
        self._batches = make_loader(dataset, sampler, workers=workers, device=device, timeout=timeout, collate=collate)
        self._iterator: Batches | None = None

    def next(self) -> tuple[list[RawBatch], Exception | None]:
        """The next step's micro-batches, none after the last, an error or a signal to stop; or what went wrong, for all
        processes to agree on."""
        if not self.left:
            return [], None
        started = time.perf_counter()
        try:
            if self._iterator is None:
                self._iterator = Batches(self._batches)
            with stop.now(), stop.alone():
                fetched = [next(self._iterator) for _ in range(self.accumulate)]
        except Stopped:
            self.left = 0
            return [], None
        except Exception as error:  # workers raise whatever their code raises
            self.left = 0
            return [], error
        self.left -= 1
        self.waited += time.perf_counter() - started
        return fetched, None

    def close(self) -> None:
        """End the workers now, rather than whenever the interpreter gets to it."""
        if self._iterator is not None:
            self._iterator.close()
