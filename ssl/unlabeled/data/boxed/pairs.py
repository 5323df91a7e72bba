"""Training samples of images with boxes, and of others that are seen twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch.loader import sample_rng
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import Sample
from unlabeled.data.boxed.dataset import BoxDataset
from unlabeled.data.boxed.strong import StrongView, matrix_of
from unlabeled.data.boxed.view import BoxView
from unlabeled.data.label.boxes import Boxes
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.data.view.placed import move_image


class BoxedFirst(MixtureSource):
    """Images with boxes, and after them others, whose boxes nobody asks for."""

    boxed = True

    def boxes(self, i: int, height: int, width: int) -> Boxes:
        source, number = self.place(i)
        return source.boxes(number, height, width)


@dataclass(eq=False)
class PairDataset(BoxDataset):
    """Samples of two groups: images with boxes in the first of two views; others, without boxes, in both, with the
    matrices from the image to each."""

    def __getitem__(self, position: Position) -> Sample:
        weak, strong = cast("BoxView", self.views[0]), cast("StrongView", self.views[1])
        if position.turn == 0:
            sample = super().__getitem__(position)
            blank = strong.blank(sample.crops[0].pixels[0])
            return sample._replace(crops=[*sample.crops, blank], moves=torch.eye(3).repeat(2, 1, 1))
        rng = sample_rng(self.seed, position.epoch, position.index, position.turn)
        image, used, bad = self._good_image(position.index)
        size = (image.shape[-2], image.shape[-1])
        how = weak.place(rng, size, weak.shape)
        first = weak.finished(move_image(image, how, weak.shape, weak.interpolation), rng)
        pixels, matrix = strong.seen(image, rng)
        moves = _stacked(matrix_of(how, size, weak.shape), matrix)
        return Sample([first, strong.finished(pixels, rng)], -1, used, bad, boxes=NONE, moves=moves)


NONE = Boxes(
    torch.zeros(0, 4),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0, dtype=torch.bool),
    torch.zeros(0, dtype=torch.float64),
)


def _stacked(*matrices: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(matrices)).float()
