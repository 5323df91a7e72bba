"""What is built after MgSvF: frequencies, two spaces and the nearest mean in both."""

from __future__ import annotations

import math

import pytest
import torch
from incremental.tiny import after, blobs, coming, kept
from torch import Tensor

from unlabeled.incremental.strategies.mgsvf import Config, frequencies, held
from unlabeled.incremental.strategy import Seen

STRATEGY = Config()


def pair(width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(5, width, dtype=torch.float64), torch.randn(5, width, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 7, 8])
def test_the_transform_keeps_lengths_and_is_that_of_the_formula(width: int) -> None:
    x, _ = pair(width)
    waves = frequencies(x)
    torch.testing.assert_close(waves @ waves.T, torch.eye(width, dtype=torch.float64))
    for k in range(width):
        z = sum(float(x[0, n]) * math.cos(math.pi / width * (n + 0.5) * k) for n in range(width))
        assert float(waves[k] @ x[0]) == pytest.approx(z * math.sqrt((1 if k == 0 else 2) / width))


def test_with_equal_strengths_it_is_plain_distillation_of_the_features() -> None:
    for width in (8, 10):
        x, y = pair(width)
        plain = sum(float((a - b) ** 2) for a, b in zip(x.flatten(), y.flatten(), strict=True)) / 5
        for groups in (1, 4):
            assert float(held(x, y, [0.7] * groups)) == pytest.approx(0.7 * plain)


def test_low_frequencies_are_held_more_strongly() -> None:
    x, y = pair(8)
    z = (x - y) @ frequencies(x).T
    strengths = (1.0, 0.5, 0.25, 0.125)
    expected = sum(g * float(z[i, 2 * q + j] ** 2) for q, g in enumerate(strengths) for i in range(5) for j in (0, 1))
    assert float(held(x, y, strengths)) == pytest.approx(expected / 5)
    even, wavy = torch.ones(1, 8), torch.tensor([[1.0, -1.0] * 4])
    assert held(even, 0 * even, strengths) > 4 * held(wavy, 0 * wavy, strengths)


def test_the_slow_space_is_held_more_and_learns_less() -> None:
    now, before = pair(16)
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.tensor([4, 5, 6, 6, 5])
    terms = STRATEGY.loss(Seen(now, logits), Seen(before, logits[:, :4]), labels, coming(), kept())
    for name, part, factor in (("slow", slice(0, 8), 10), ("fast", slice(8, 16), 1)):
        torch.testing.assert_close(terms[name], factor * held(now[:, part], before[:, part], STRATEGY.strengths))
    new = -logits[:, 4:].log_softmax(1)[torch.arange(5), labels - 4].mean()
    torch.testing.assert_close(terms["classification"], new)
    assert (STRATEGY.rate(0), STRATEGY.rate(1)) == (0.1, 1.0)


def test_classes_are_named_by_the_nearest_mean_in_both_spaces() -> None:
    strategy = Config(share=0.3)
    x, y = blobs(4, 5, width=8)
    state = kept(strategy.learnt(after(x, y), coming(0, 0, 4), kept()))
    scores = strategy.scores(Seen(x, x), state)

    def composed(v: Tensor) -> Tensor:
        return torch.cat([0.3 * v[:4] / v[:4].norm(), 0.7 * v[4:] / v[4:].norm()])

    for k in range(4):
        mean = torch.stack([composed(v) for v in x[y == k]]).mean(0)
        torch.testing.assert_close(state.tensors["means"][k], mean)
        for i in range(20):
            assert float(-scores[i, k]) == pytest.approx(float((composed(x[i]) - mean).square().sum()))


def test_the_mean_of_an_old_class_stays_unless_images_of_it_are_remembered() -> None:
    x, y = blobs(4, 5, width=8)
    first = kept(STRATEGY.learnt(after(x[y < 2], y[y < 2]), coming(0, 0, 2), kept()))
    moved = x + 0.5
    alone, one = y >= 2, (y >= 2) | (torch.arange(20) == 3)
    without, remembered = (
        STRATEGY.learnt(after(moved[m], y[m]), coming(1, 2, 2), first)["means"] for m in (alone, one)
    )
    assert without[:2].equal(first.tensors["means"]) and remembered[1].equal(without[1])
    torch.testing.assert_close(remembered[0], STRATEGY.composed(moved[3:4])[0])


def test_it_says_that_it_is_experimental() -> None:
    assert "after" in STRATEGY.plan(5) and "experimental" in STRATEGY.plan(5)
    assert Config.__doc__ and Config.__doc__.startswith("Experimental, after")
