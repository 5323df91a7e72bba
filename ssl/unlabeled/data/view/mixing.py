"""Mixup and CutMix of neighbours in the global batch, drawn from a pair's place in it or for all of them alike: the
same however many processes there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field

from unlabeled.data.batch.sampler import Position
from unlabeled.errors import UserError
from unlabeled.nn.mixing import Mix
from unlabeled.randomness import Stream, stream

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mixing(BaseModel, frozen=True, extra="forbid"):
    """A recipe's `mixing:` section. Both images of a pair are mixed, by the same share."""

    mixup: Alpha = Field(0.0, description="alpha of mixup; 0 = off")
    cutmix: Alpha = Field(0.0, description="alpha of CutMix; 0 = off")
    prob: float = Field(1.0, ge=0, le=1, description="probability that a pair is mixed at all")
    switch: float = Field(0.5, ge=0, le=1, description="probability of CutMix where both are on")
    together: bool = Field(
        False, description="all pairs of a batch are mixed alike (timm's mode batch); otherwise each draws for itself"
    )
    off_epoch: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="epoch from which nothing is mixed any more; null = never"
    )

    @property
    def on(self) -> bool:
        """Whether images are mixed at all."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def check(self, micro_batch: int, field: str = "task.mixing") -> None:
        """Raise UserError, which names the field of the recipe, when a micro-batch would part a pair."""
        if self.on and micro_batch % 2:
            raise UserError(
                f"{field} mixes neighbours, so each process needs an even number of pictures at a time, found "
                f"{micro_batch}. Make train.batch_size a multiple of 2 x processes x run.accumulate."
            )

    def draw(self, position: Position, shape: tuple[int, int], seed: int) -> tuple[float, tuple[int, int, int, int]]:
        """Share and box of the pair that a sample belongs to, from (seed, step, pair) alone, or (seed, step) where all
        are mixed alike, for images of `shape` (height, width) pixels. The epoch decides whether mixing is over."""
        off = self.off_epoch is not None and position.epoch >= self.off_epoch
        rng = stream(seed, Stream.MIX, position.step, 0 if self.together else position.row // 2)
        if off or rng.random() >= self.prob:
            return 1.0, (0, 0, 0, 0)
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        return _cut(share, shape, rng) if cut else (share, (0, 0, 0, 0))


def _cut(share: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[float, tuple[int, int, int, int]]:
    """A box about a random centre that would leave `share` of the image, clipped to it, and what it does leave."""
    height, width = shape
    h, w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - h // 2), min(height, y + (h + 1) // 2)
    left, right = max(0, x - w // 2), min(width, x + (w + 1) // 2)
    return 1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right)


def stack(drawn: Sequence[Any]) -> Mix | None:
    """The draws of a micro-batch's samples; None where nothing is ever mixed."""
    if drawn[0] is None:
        return None
    return Mix(torch.tensor([share for share, _ in drawn]), torch.tensor([box for _, box in drawn]))
