"""The labelled images of both splits and their preparation for an encoder. Knows no protocol."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from unlabeled.backbone.pooling import Encode, Pool
from unlabeled.data.archive.listing import Split
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import UserError
from unlabeled.evaluate.features import WORKER_TIMEOUT, Features, extract

SPARED = 0.1  # share of bad images that does not stop an evaluation: labelled sets are small


class Preparation(BaseModel, frozen=True, extra="forbid"):
    """The way from images to features."""

    pool: Pool | None = Field(
        None,
        description="the class token, the mean of the patches, both, or mean and maximum; null = as the method is "
        "evaluated (mae and simmim: mean; others: the class token where there is one). The export says it too",
    )
    crop_pct: float = Field(
        0.875, gt=0, le=1, allow_inf_nan=False, description="share of the short side that the central crop keeps"
    )
    interpolation: Interpolation = Field("bicubic", description="how pictures are resized")
    batch_size: int = Field(256, ge=1, description="pictures encoded at a time, per process")


class Splits:
    """The labelled images of both splits, opened when first used.

    Args:
        preparation: crop, interpolation, batch size and pool.
        data: the images, and their normalisation.
        device: of encoders and probes.
        workers: processes that load images.
        rank, world: this process and the number of processes.
        labels: whether classes matter; if not, all images are of one.
        timeout: seconds to wait for a batch of a worker.
    """

    def __init__(
        self,
        preparation: Preparation,
        data: Opened,
        device: torch.device,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        labels: bool = True,
        timeout: float = WORKER_TIMEOUT,
    ) -> None:
        self.preparation, self.data, self.device = preparation, data, device
        self.workers, self.rank, self.world, self.timeout, self.labels = workers, rank, world, timeout, labels
        self.known: dict[Hashable, Any] = {}  # findings of protocols about the images, to look once

    @cached_property
    def sources(self) -> tuple[Source, Source]:
        """(train, val). Raises UserError when one has no labels, their classes differ, or they share images."""
        sources = self._labelled() if self.labels else (self._of_one_class("train"), self._of_one_class("val"))
        self.data.check_apart(*sources)
        return sources

    def _of_one_class(self, split: Split) -> Source:
        source = self.data.original(split)
        return source.relabelled(np.zeros(len(source), np.int64), ("picture",))

    def _labelled(self) -> tuple[Source, Source]:
        train, val = self.data.train, self.data.val
        for name, source in (("train", train), ("val", val)):
            if not (np.asarray(source.labels) >= 0).any():
                raise UserError(
                    f"evaluation needs labels, and no picture of {name} has one. Put each picture of {name} "
                    "in a folder of its class, or switch evaluation off with evaluate=null."
                )
        if len(train.classes) == 1:
            raise UserError(
                f"train has one class, {train.classes[0]!r}; expected at least two to tell apart. Give each class a "
                "folder of its own right below train, or switch evaluation off with evaluate=null."
            )
        if train.classes != val.classes:
            raise UserError(
                f"train has {len(train.classes)} classes {train.classes[:5]}, val has {len(val.classes)} "
                f"{val.classes[:5]}. Give both splits the same class folders."
            )
        if len(strange := np.setdiff1d(val.labels[val.labels >= 0], train.labels)):
            names = ", ".join(repr(train.classes[label]) for label in strange[:10])
            raise UserError(
                f"val has pictures of classes that train has none of: {names}. Give train some, or take these "
                "classes out of val."
            )
        return train, val

    def features(self, encode: Encode, shape: tuple[int, int]) -> tuple[Features, Features]:
        """Encode (train, val) images of `shape` pixels; on the device."""
        train, val = (self.encoded(encode, source, shape) for source in self.sources)
        return train, val

    def encoded(self, encode: Encode, source: Source, shape: tuple[int, int]) -> Features:
        """Encode the labelled images of any source as those of both splits; on the device."""
        how, config = self.preparation, self.data.config
        return extract(
            encode,
            source,
            shape=shape,
            crop_pct=how.crop_pct,
            interpolation=how.interpolation,
            normalize=Normalize(config.mean, config.std, self.device),
            device=self.device,
            batch_size=how.batch_size,
            workers=self.workers,
            rank=self.rank,
            world=self.world,
            timeout=self.timeout,
            max_bad=max(config.max_bad_fraction, SPARED),
        ).to(self.device)


def most_frequent(train: Source, val: Source) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Labels of both, and for every labelled picture of val 100 where naming the most frequent class of train is
    right, else 0. Raises UserError where one has no labels."""
    known, asked = (source.labels[source.labels >= 0] for source in (train, val))
    if not len(known) or not len(asked):
        raise UserError("pictures to evaluate on have no labels; expected some in train and in val")
    return known, asked, 100.0 * (asked == np.bincount(known).argmax())
