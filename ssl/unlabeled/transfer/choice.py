"""Which of many heads is the best, on pictures that none has learnt from."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.transfer.score import predict_all
from unlabeled.transfer.sweep import LinearSweep


class Choice:
    """Scores every head of a sweep and lets the best one predict; of equals, the one that is named first.

    Args:
        recipe: of the fine-tuning, with a `watch:` section.
        accelerator: device and processes.
        source: the pictures that decide.

    Attributes:
        scores: of every head at the last look, percent.
    """

    def __init__(self, recipe: Any, accelerator: Accelerator, source: Source) -> None:
        self.recipe, self.accelerator, self.source = recipe, accelerator, source
        self.scores: list[float] = []

    def __call__(self, method: LinearSweep) -> dict[str, float]:
        """The best head's score by its name. All processes must call it, and choose the same."""
        seen = predict_all(
            lambda images: method.guesses(images).float(), method, self.recipe, self.accelerator, self.source
        )
        right = (seen.x.long() == seen.y.unsqueeze(1)).double()
        metric = self.recipe.watch.metric
        scores = 100 * (balanced(right, seen.y) if metric == "balanced_accuracy" else right.mean(0))
        self.scores, method.chosen = scores.tolist(), int(scores.argmax())
        return {metric: self.scores[method.chosen]}

    def summary(self, method: LinearSweep) -> dict[str, Any]:
        """What was tried, what was chosen and on what, as JSON."""
        watch = self.recipe.watch
        heads = [
            {"pool": kind.pool, "blocks": kind.blocks, "rate": rate, watch.metric: score}
            for (kind, rate), score in zip(method.tried, self.scores, strict=True)
        ]
        on = f"{100 * watch.hold_out:g} % of the labels, held out" if watch.hold_out else "data.val itself"
        return {"chosen": heads[method.chosen], "on": on, "pictures": len(self.source), "heads": heads}


def balanced(right: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur of the share that is right: right [n, heads], labels [n], scores [heads]."""
    counts = torch.bincount(labels)
    shares = right.new_zeros(len(counts), right.shape[1]).index_add_(0, labels, right)
    present = counts > 0
    return (shares[present] / counts[present].unsqueeze(1)).mean(0)
