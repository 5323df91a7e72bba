"""Outputs of a task for every image of a source, with evaluation preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation
from unlabeled.evaluate.features import Features, extract
from unlabeled.nn.modes import evaluating
from unlabeled.pretrain.method import Method


class Predict(NamedTuple):
    """How images are prepared and read for a score."""

    accelerator: Accelerator
    shape: tuple[int, int]  # height, width of the crop, pixels
    crop_pct: float  # centre share of the resized image
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int  # processes that decode
    timeout: float  # seconds to wait for one

    @contextmanager
    def reading(self, method: Method) -> Iterator[None]:
        """Within, the method in evaluation mode, without gradients."""
        with torch.no_grad(), evaluating(method):
            yield

    def __call__(
        self, encode: Encode, method: Method, source: Source, reduce: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Features:
        """Outputs of `encode`, which runs `method` in evaluation mode. All processes must call it.

        `encode` takes images [B, C, H, W] to outputs [B, ...]; `reduce` says what is kept of them, see `extract`.
        """
        device = self.accelerator.device
        with self.reading(method):
            return extract(
                encode,
                source,
                shape=self.shape,
                crop_pct=self.crop_pct,
                interpolation=self.interpolation,
                normalize=Normalize(self.mean, self.std, device),
                device=device,
                workers=self.workers,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
                timeout=self.timeout,
                reduce=reduce,
            )
