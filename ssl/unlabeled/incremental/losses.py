"""Losses that several class-incremental strategies share; each is a mean over the images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlabeled.incremental.strategy import Coming
from unlabeled.nn.loss.exact import wide


def classification(logits: Tensor, labels: Tensor, task: Coming) -> Tensor:
    """Cross-entropy of logits [B, classes] and labels [B]: over the new classes alone where no image is remembered.

    Without images of old classes, a cross-entropy over all would only push their logits down.
    """
    if task.remembered:
        return F.cross_entropy(wide(logits), labels)
    return F.cross_entropy(wide(logits)[:, task.old :], labels - task.old)


def distillation(logits: Tensor, before: Tensor, temperature: float) -> Tensor:
    """-mean_B sum_k softmax(before / T)_k log_softmax(logits / T)_k (Li & Hoiem 2017, equation 2), not times T^2.

    Args:
        logits: [B, classes], of which the first that `before` knows count.
        before: [B, old], without gradient.
    """
    known = wide(logits)[:, : before.shape[1]] / temperature
    return F.cross_entropy(known, (wide(before.detach()) / temperature).softmax(1))
