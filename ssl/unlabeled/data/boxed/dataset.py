"""Training samples of images with boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from unlabeled.data.batch.loader import ViewDataset, sample_rng
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import Sample
from unlabeled.data.boxed.view import BoxView, centre_of, mosaic, quarters
from unlabeled.data.label.boxes import Boxes
from unlabeled.randomness import Stream, stream

Bad = list[tuple[str, str]]  # keys and reasons


@dataclass(eq=False)
class BoxDataset(ViewDataset):
    """Samples of a source with boxes, one `BoxView` of each image, or of four in a mosaic."""

    def __getitem__(self, position: Position) -> Sample:
        view, shape = cast("BoxView", self.views[0]), self.views[0].shape
        rng = sample_rng(self.seed, position.epoch, position.index, position.turn)
        others = stream(self.seed, Stream.MOSAIC, position.step, position.row) if view.mosaic else None
        if others is not None and others.random() < view.mosaic:
            pixels, boxes, used, bad = self._mosaic(view, position.index, rng, others)
        else:
            image, boxes, used, bad = self._read(position.index)
            pixels, boxes = view.drawn(image, boxes, rng, shape)
        return Sample([view.finished(pixels, rng)], self.source.label(used), used, bad, boxes=boxes)

    def _read(self, index: int) -> tuple[Tensor, Boxes, int, Bad]:
        """An image that can be used, its boxes, its number, and those that were stepped over."""
        image, used, bad = self._good_image(index)
        return image, self.source.boxes(used, image.shape[-2], image.shape[-1]), used, bad

    def _mosaic(
        self, view: BoxView, index: int, rng: np.random.Generator, others: np.random.Generator
    ) -> tuple[Tensor, Boxes, int, Bad]:
        """The image of a number at the top left and three others, all placed at random in their quarters."""
        places = quarters(centre_of(others, view.shape), view.shape)
        among = len(self.source) if self.groups is None else len(self.groups.rows[0])  # the first have boxes
        numbers = [index, *others.integers(among, size=3).tolist()]
        read = [self._read(number) for number in numbers]
        draws = [rng, others, others, others]
        parts = [
            view.drawn(image, boxes, drawing, place[2:])
            for (image, boxes, _, _), drawing, place in zip(read, draws, places, strict=True)
        ]
        pixels, boxes = mosaic(parts, places, view.shape)
        return pixels, boxes, read[0][2], [one for _, _, _, bad in read for one in bad]
