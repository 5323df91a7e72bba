"""Logistic regression: its optimum against plain gradient descent, its strength by held-out pictures."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from evaluate.test_linear import blobs
from torch import Tensor

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.logistic_regression import fit
from unlabeled.evaluate.probing import accuracy, hold_out, standardize
from unlabeled.evaluate.protocols.logistic import Config as Logistic
from unlabeled.evaluate.protocols.logistic import logistic_probe


def problem(n: int = 60, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    features = blobs(n, noise=noise, seed=seed)
    return standardize(features, features)[0].x.double(), features.y


def descend(x: Tensor, y: Tensor, l2: float, steps: int = 20_000, lr: float = 0.3) -> tuple[Tensor, Tensor]:
    """Gradient descent by autograd on the loss as it is written."""
    weight = torch.zeros(x.shape[1], 3, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(3, dtype=x.dtype, requires_grad=True)
    for _ in range(steps):
        loss = F.cross_entropy(x @ weight + bias, y) + l2 / 2 * (weight**2).sum()
        for parameter, slope in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            parameter.data -= lr * slope
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_optimum_is_where_plain_gradient_descent_ends(l2: float) -> None:
    x, y = problem()
    found = fit(x, y, 3, l2, tolerance=1e-9)
    weight, bias = descend(x, y, l2, steps=4000)
    torch.testing.assert_close(found.regression.weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.regression.bias, bias, rtol=1e-5, atol=1e-6)
    assert found.slope <= 1e-9


def test_no_slope_is_left_at_the_solution_by_autograd() -> None:
    x, y = problem()
    regression = fit(x, y, 3, 1e-3, tolerance=1e-7).regression
    weight, bias = (tensor.clone().requires_grad_() for tensor in regression)
    (F.cross_entropy(x @ weight + bias, y) + 1e-3 / 2 * (weight**2).sum()).backward()
    assert weight.grad is not None and bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) <= 1e-7


def test_a_batch_of_problems_is_solved_as_each_alone_from_any_start() -> None:
    pairs = [problem(seed=seed) for seed in range(3)]
    x, y = (torch.stack(column) for column in zip(*pairs, strict=True))
    together = fit(x, y, 3, 0.1, tolerance=1e-9).regression
    for place, (one_x, one_y) in enumerate(pairs):
        alone = fit(one_x, one_y, 3, 0.1, tolerance=1e-9)
        torch.testing.assert_close(together.weight[place], alone.regression.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.bias[place], alone.regression.bias, rtol=1e-5, atol=1e-6)
        again = fit(one_x, one_y, 3, 0.1, alone.regression, tolerance=1e-9)
        torch.testing.assert_close(again.regression.weight, alone.regression.weight, rtol=1e-6, atol=1e-7)


def in_noise(n: int, seed: int) -> Features:
    """Faint classes beside many dimensions of noise: only a strong penalty keeps them from being learnt by heart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return Features(
        torch.cat([2 * F.one_hot(y, 3), torch.zeros(n, 60)], 1) + torch.randn(n, 63, generator=generator), y
    )


def in_a_difference(n: int, seed: int) -> Features:
    """The class is the small difference of two large numbers: a strong penalty hides it."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    both = 10 * torch.randn(n, 1, generator=generator)
    return Features(torch.cat([both, both + y.unsqueeze(1)], dim=1), y)


@pytest.mark.parametrize(("draw", "best"), [(in_noise, 1.0), (in_a_difference, 1e-5)])
def test_the_strength_is_chosen_on_held_out_pictures_alone(draw: Callable[..., Features], best: float) -> None:
    """Held out by hand; wrong test labels change nothing."""
    train, test = draw(60, 0), draw(300, 1)
    config = Logistic(l2=(1e-5, 1.0))
    hits, l2 = logistic_probe(train, test, 3, config)
    (x, y, _), others = standardize(train, test)
    right = dict.fromkeys(config.l2, 0)
    for (held, kept), strength in itertools.product(hold_out(y.numpy(), 0), config.l2):
        alone = fit(x[kept].double(), y[kept], 3, strength).regression
        right[strength] += int((alone.logits(x[held].double()).argmax(1) == y[held]).sum())
    assert l2 == max(right, key=lambda strength: right[strength]) == best
    alone = fit(x.double(), y, 3, l2).regression
    assert torch.equal(hits, alone.logits(others.x.double()).argmax(1) == test.y)
    assert logistic_probe(train, Features(test.x, (test.y + 1) % 3), 3, config)[1] == l2


def test_equal_strengths_go_to_the_larger_and_one_alone_is_taken() -> None:
    train, test = blobs(300, noise=0.01), blobs(300, noise=0.01, seed=1)
    assert logistic_probe(train, test, 3, Logistic(l2=(1e-4, 1e-2, 1e-3)))[1] == 1e-2
    assert logistic_probe(train, test, 3, Logistic(l2=(1e-4,)))[1] == 1e-4
    assert accuracy(logistic_probe(blobs(3, noise=0.1), test, 3, Logistic())[0]) > 90, "one picture of each class"


def test_stopping_early_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logistic_probe(blobs(60), blobs(60, seed=1), 3, Logistic(l2=(1e-5,), max_iterations=2))
    assert "raise max_iterations" in caplog.text
    caplog.clear()
    # a slope that a line search in float32 does not come to
    logistic_probe(blobs(60, noise=1), blobs(60, seed=1), 3, Logistic(l2=(1e-3,), tolerance=1e-6))
    assert not caplog.text
