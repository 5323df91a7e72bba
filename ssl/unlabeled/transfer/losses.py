"""The loss of fine-tuning: cross-entropy with soft targets, and what helps with few or unbalanced labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.data.batch.batch import Batch
from unlabeled.nn.collectives import mean_over_processes
from unlabeled.nn.mixing import mix_images, mix_targets


def examples(batch: Batch, num_classes: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] and their smoothed targets [B, classes], mixed with their neighbours' where that is drawn."""
    images, _ = batch.views[0].flat()
    targets = smooth(batch.labels, num_classes, smoothing)
    if batch.mix is None:
        return images, targets
    return mix_images(images, batch.mix), mix_targets(targets, batch.mix)


def smooth(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [B] as targets [B, classes], `smoothing` of each spread evenly over all classes (Szegedy et al. 2016)."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Weights [C] of classes with `counts` [C] images: (1 - beta) / (1 - beta^n), summing to C (Cui et al. 2019)."""
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights * len(counts) / weights.sum()).float()


def flood(loss: Tensor, level: float) -> Tensor:
    """|loss - level| + level of the global batch's mean loss: below the level the gradient turns round (Ishida et al.
    2020). Every process sees the same side of the level."""
    return torch.where(mean_over_processes(loss) < level, -1.0, 1.0) * (loss - level) + level


class Objective(nn.Module):
    """Cross-entropy of logits and soft targets.

    Args:
        counts: training images of each class.
        effective_number: beta of the classes' weights; None = all alike.
        logit_adjustment: factor on the log frequencies that are added to the logits.
        flood: level below which the loss is raised again; None = none.
    """

    log_prior: Tensor
    weight: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        effective_number: float | None = None,
        logit_adjustment: float = 0.0,
        flood: float | None = None,
    ) -> None:
        super().__init__()
        found, beta = torch.tensor(counts, dtype=torch.float64), effective_number
        weight = torch.ones(len(counts)) if beta is None else effective_weights(found, beta)
        log_prior = logit_adjustment * (found / found.sum()).log()
        self.level = flood
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("log_prior", log_prior.float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over logits and targets [..., C]; priors are added to the logits (Menon et al. 2021, equation 10)."""
        surprise = -F.log_softmax(logits.float() + self.log_prior, dim=-1)
        loss = (targets * self.weight * surprise).sum(-1).mean()
        return loss if self.level is None else flood(loss, self.level)
