"""Training samples of images with masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from unlabeled.data.batch.loader import ViewDataset, sample_rng
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import Sample
from unlabeled.data.masked.view import MaskView


@dataclass(eq=False)
class MaskDataset(ViewDataset):
    """Samples of a source with masks, one `MaskView` of each image."""

    def __getitem__(self, position: Position) -> Sample:
        view = cast("MaskView", self.views[0])
        rng = sample_rng(self.seed, position.epoch, position.index, position.turn)
        image, used, bad = self._good_image(position.index)
        mask = self.source.pixel_labels(used, image.shape[-2], image.shape[-1])
        pixels, labels = view.drawn(image, mask, rng)
        return Sample([view.finished(pixels, rng)], self.source.label(used), used, bad, pixel_labels=labels)
