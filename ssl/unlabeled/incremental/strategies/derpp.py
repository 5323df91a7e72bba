"""DER++: dark experience replay (Buzzega et al. 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.incremental.strategy import After, Coming, Kept, Seen, Strategy
from unlabeled.nn.loss.exact import wide


class Config(Strategy, frozen=True, extra="forbid"):
    """Replay images with the logits that they had when they were kept, and others with their labels (equation 6).

    Logits are those at the end of the task, not those in passing: an order of images need not be remembered.
    """

    draws: ClassVar[tuple[int, ...]] = (1, 1)
    remembers: ClassVar[bool] = True
    name: Literal["derpp"] = "derpp"

    alpha: float = Field(0.3, ge=0, allow_inf_nan=False, description="weight of the squared error of the kept logits")
    beta: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of the remembered images' cross-entropy")

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        if not task.remembered:
            return {"classification": F.cross_entropy(wide(now.logits), labels)}
        assert now.numbers is not None
        new, first, second = parts(now.logits, self.draws)
        logits, known = stored(parts(now.numbers, self.draws)[1], kept)
        y, _, labels2 = parts(labels, self.draws)
        return self.terms(new, y, first, logits, known, second, labels2)

    def terms(
        self, new: Tensor, y: Tensor, first: Tensor, stored: Tensor, known: Tensor, second: Tensor, y2: Tensor
    ) -> dict[str, Tensor]:
        """The loss of logits [B, classes] of new images and of two draws from memory, which need not be as many.

        `stored` [b, C] are the logits that the first draw had, of which the first `known` [b] count.
        """
        return {
            "classification": F.cross_entropy(wide(new), y),
            "replayed_logits": self.alpha * squared_error(first, stored, known),
            "replayed_labels": self.beta * F.cross_entropy(wide(second), y2),
        }

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Numbers [m] of the remembered images, their logits [m, classes] and how many of these were known."""
        memory = kept.memory.to(after.numbers.device)
        logits = after.logits[found(memory, after.numbers)].clone()
        known = memory.new_full(memory.shape, task.classes)
        if kept.tensors:
            old = torch.isin(memory, kept.tensors["numbers"].to(memory))
            rows = found(memory[old], kept.tensors["numbers"].to(memory))
            before = kept.tensors["logits"].to(logits)[rows]
            logits[old] = F.pad(before, (0, logits.shape[1] - before.shape[1]))
            known[old] = kept.tensors["known"].to(known)[rows]
        return {"numbers": memory, "logits": logits, "known": known}


def parts(rows: Tensor, draws: tuple[int, ...]) -> list[Tensor]:
    """Rows [B (1 + sum of draws), ...] of new images and of each draw from memory."""
    size = len(rows) // (1 + sum(draws))
    return list(rows.split([size, *(size * draw for draw in draws)]))


def stored(numbers: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """The logits [b, C] kept of the images of some numbers [b], and how many of them were known [b]: none of an image
    that stands in for one that cannot be read any more."""
    rows = found(numbers, kept.tensors["numbers"])
    there = kept.tensors["numbers"][rows] == numbers
    return kept.tensors["logits"][rows], kept.tensors["known"][rows] * there


def found(wanted: Tensor, numbers: Tensor) -> Tensor:
    """The rows of `numbers` [n], each there once, in which those `wanted` [b] stand; any row of one that does not."""
    order = numbers.argsort()
    return order[torch.searchsorted(numbers[order], wanted).clamp(max=len(numbers) - 1)]


def squared_error(logits: Tensor, stored: Tensor, known: Tensor) -> Tensor:
    """Mean over images of the mean squared error over the outputs that were known.

    Args:
        logits: [b, classes].
        stored: [b, C], C up to classes.
        known: [b] outputs of each, the first ones; 0 = the image does not count.
    """
    errors = (wide(logits)[:, : stored.shape[1]] - stored).square()
    counted = torch.arange(stored.shape[1], device=known.device) < known[:, None]
    return ((errors * counted).sum(1) / known.clamp_min(1)).mean()
