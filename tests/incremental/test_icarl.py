"""iCaRL, one image and one output at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from incremental.tiny import after, blobs, coming, kept
from torch import Tensor

from unlabeled.incremental.strategies.icarl import Config
from unlabeled.incremental.strategy import Seen

LABELS = torch.tensor([4, 1, 6, 0, 4])


def logits(classes: int, seed: int) -> Tensor:
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("old", [0, 4])
def test_binary_cross_entropies_by_hand(old: int) -> None:
    """Images of old classes have the old answers as targets of old classes too, not their labels."""
    now, before = logits(7, 0), logits(max(1, old), 1)
    task = coming(old=old, new=7 - old, memory=2)
    terms = Config().loss(Seen(now, now), Seen(before, before) if old else None, LABELS, task, kept())

    def sigmoid(x: Tensor) -> float:
        return 1 / (1 + math.exp(-float(x)))

    expected = 0.0
    for i, label in enumerate(LABELS):
        for k in range(7):
            target = sigmoid(before[i, k]) if k < old else float(k == label)
            p = sigmoid(now[i, k])
            expected -= (target * math.log(p) + (1 - target) * math.log(1 - p)) / (5 * 7)
    assert list(terms) == ["classification"]
    assert terms["classification"].item() == pytest.approx(expected, rel=1e-12)


def test_the_objective_of_tables() -> None:
    now, before = logits(7, 0), logits(4, 1)
    strategy = Config(objective="softmax")
    terms = strategy.loss(Seen(now, now), Seen(before, before), LABELS, coming(memory=2), kept())
    torch.testing.assert_close(terms["classification"], F.cross_entropy(now, LABELS))
    old = -((before / 2).softmax(1) * (now[:, :4] / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["distillation"], old)


@pytest.mark.parametrize("flips", [True, False])
def test_means_are_of_the_memory_by_the_new_network(flips: bool) -> None:
    x, y = blobs(4, 5)
    mirrored, numbers = x + 0.5, 10 * torch.arange(20)
    memory = numbers[[0, 3, 7, 9, 12, 11, 19]]
    state = kept({"means": torch.zeros(2, 6)}, memory)
    strategy = Config(flips=flips)
    means = strategy.learnt(after(x, y, numbers, mirrored=mirrored), coming(1, 2, 2), state)["means"]
    for k, rows in enumerate(([0, 3], [7, 9], [11, 12], [19])):
        parts = [x[r] / x[r].norm() for r in rows]
        parts += [mirrored[r] / mirrored[r].norm() for r in rows] if flips else []
        mean = torch.stack(parts).mean(0)
        torch.testing.assert_close(means[k], mean / mean.norm())


def test_the_nearest_mean_is_named_and_exported() -> None:
    x, y = blobs(4, 5)
    state = kept(Config(flips=False).learnt(after(x, y), coming(0, 0, 4), kept(memory=torch.arange(20))))
    means = state.tensors["means"]
    scores = Config().scores(Seen(x.float(), x), state)
    for i in range(20):
        for k in range(4):
            away = float((x[i] / x[i].norm() - means[k]).square().sum())
            assert -float(scores[i, k]) == pytest.approx(away, abs=1e-6)
    assert (x @ Config().rows(state).T).argmax(1).equal(scores.argmax(1))
