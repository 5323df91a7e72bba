"""Learning without forgetting, one image and one class at a time."""

from __future__ import annotations

import math

import pytest
import torch
from incremental.tiny import coming, kept
from torch import Tensor

from unlabeled.incremental.losses import classification
from unlabeled.incremental.strategies.lwf import Config
from unlabeled.incremental.strategy import Seen


def logits(classes: int, seed: int) -> Tensor:
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row: Tensor) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


LABELS = torch.tensor([4, 5, 6, 6, 4])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_the_loss_by_hand(temperature: float) -> None:
    now, before, task = logits(7, 0), logits(4, 1), coming()
    terms = Config(weight=1.5, temperature=temperature).loss(Seen(now, now), Seen(before, before), LABELS, task, kept())
    new, old = 0.0, 0.0
    for row, then, label in zip(now, before, LABELS, strict=True):
        new -= math.log(softmax(row[4:])[int(label) - 4]) / 5
        p, q = softmax(then / temperature), softmax(row[:4] / temperature)
        old -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 5
    assert terms["classification"].item() == pytest.approx(new, rel=1e-12)
    assert terms["distillation"].item() == pytest.approx(1.5 * old, rel=1e-12)


def test_weight_0_is_fine_tuning() -> None:
    now, task = logits(7, 0), coming()
    terms = Config(weight=0).loss(Seen(now, now), Seen(logits(4, 1), now), LABELS, task, kept())
    assert list(terms) == ["classification"]


def test_with_a_memory_all_classes_are_told_apart() -> None:
    """Without one the logits of old classes are no part of the cross-entropy, and keep their gradient 0."""
    now = logits(7, 0).requires_grad_()
    alone, together = (classification(now, LABELS, coming(memory=m)) for m in (0, 3))
    expected = -sum(math.log(softmax(row)[int(y)]) for row, y in zip(now.detach(), LABELS, strict=True)) / 5
    assert together.item() == pytest.approx(expected, rel=1e-12)
    alone.backward()
    assert now.grad is not None and not now.grad[:, :4].any() and now.grad[:, 4:].all()
