"""The loss of fine-tuning against formulas written out, one class and one picture at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support import on_processes
from torch import Tensor

from unlabeled.transfer.losses import Objective, effective_weights, flood, smooth

COUNTS = [500, 50, 5]


def logits() -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)


LABELS = torch.tensor([0, 0, 1, 2, 0, 1, 2, 0])


def test_without_options_it_is_smoothed_cross_entropy() -> None:
    loss = Objective(COUNTS)(logits(), smooth(LABELS, 3, 0.1))
    torch.testing.assert_close(loss, F.cross_entropy(logits(), LABELS, label_smoothing=0.1))


def test_flooding_turns_the_gradient_round_below_its_level() -> None:
    plain = logits()
    F.cross_entropy(plain, LABELS).backward()
    value = F.cross_entropy(plain, LABELS).item()
    for level, sign in ((value - 0.5, 1.0), (value + 0.5, -1.0)):
        flooded = logits()
        loss = Objective(COUNTS, flood=level)(flooded, smooth(LABELS, 3, 0.0))
        loss.backward()
        assert loss.item() == pytest.approx(abs(value - level) + level)
        torch.testing.assert_close(flooded.grad, sign * plain.grad)


def losses_on_two_sides(rank: int) -> Tensor:
    loss = torch.tensor([0.2, 1.0][rank], requires_grad=True)
    flood(loss, 0.5).backward()
    assert loss.grad is not None
    return torch.stack([flood(loss.detach(), 0.5), loss.grad])


def test_processes_flood_by_the_mean_of_all() -> None:
    (a, slope_a), (b, slope_b) = on_processes(losses_on_two_sides)
    assert slope_a == slope_b == 1.0  # the mean, 0.6, is above the level, though 0.2 is below
    assert (a + b).item() / 2 == pytest.approx(0.6)


def test_effective_number_of_samples() -> None:
    beta = 0.99
    raw = [1 / sum(beta**i for i in range(n)) for n in COUNTS]  # (1 - b) / (1 - b^n), summed as a series
    expected = torch.tensor([3 * w / sum(raw) for w in raw])
    torch.testing.assert_close(effective_weights(torch.tensor(COUNTS), beta), expected)
    loss = Objective(COUNTS, effective_number=beta)(logits(), smooth(LABELS, 3, 0.0))
    each = F.cross_entropy(logits(), LABELS, reduction="none")
    torch.testing.assert_close(loss, (each * expected[LABELS]).mean())


def test_logit_adjustment_adds_log_priors() -> None:
    loss = Objective(COUNTS, logit_adjustment=1.5)(logits(), smooth(LABELS, 3, 0.0))
    expected = 0.0
    for row, label in zip(logits().tolist(), LABELS.tolist(), strict=True):
        adjusted = [value + 1.5 * math.log(n / sum(COUNTS)) for value, n in zip(row, COUNTS, strict=True)]
        expected += math.log(sum(map(math.exp, adjusted))) - adjusted[label]
    assert loss.item() == pytest.approx(expected / len(LABELS), rel=1e-5)
