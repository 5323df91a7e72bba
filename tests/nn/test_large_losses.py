"""Losses over many prototypes, taken a few rows at a time, against the same at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlabeled.nn.loss import prototypes

WIDTH = 37


@pytest.fixture(params=[1, 2, 5, 100], ids="{} rows a part".format)
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, rows are taken in parts."""

    def begin() -> None:
        monkeypatch.setattr(prototypes, "LARGE", 0)
        monkeypatch.setattr(prototypes, "PART", request.param * WIDTH)

    return begin


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    student = logits.clone().requires_grad_()
    value = loss(student)
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [2, 6])
def test_cross_view(few_rows: Callable[[], None], views: int, dtype: torch.dtype) -> None:
    student, teacher = randn(views, 3, WIDTH, seed=0, dtype=dtype), randn(2, 3, WIDTH, seed=1).softmax(-1)

    def loss(logits: Tensor) -> Tensor:
        return prototypes.cross_view(logits, teacher, 0.1)

    value, gradient = with_gradient(loss, student)
    few_rows()
    found, changed = with_gradient(loss, student)
    torch.testing.assert_close(found, value)
    assert changed.dtype == dtype
    torch.testing.assert_close(changed, gradient)


def test_masked_patches(few_rows: Callable[[], None]) -> None:
    student, teacher = randn(7, WIDTH, seed=2), randn(7, WIDTH, seed=3).softmax(-1)
    weight = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.25, 0.0, 0.0])

    def loss(logits: Tensor) -> Tensor:
        return prototypes.masked_patches(logits, teacher, weight, 4, 0.1)

    expected = with_gradient(loss, student)
    few_rows()
    torch.testing.assert_close(with_gradient(loss, student), expected)


@pytest.mark.parametrize("shape", [(6, WIDTH), (2, 3, WIDTH)])
def test_sharpen(few_rows: Callable[[], None], shape: tuple[int, ...]) -> None:
    logits, centre = randn(*shape, seed=4, dtype=torch.bfloat16), randn(1, WIDTH, seed=5)
    expected = prototypes.sharpen(logits, centre, 0.04)
    few_rows()
    torch.testing.assert_close(prototypes.sharpen(logits, centre, 0.04), expected, rtol=0, atol=0)


def test_gradients_by_differences(few_rows: Callable[[], None]) -> None:
    few_rows()
    logits, target = randn(4, WIDTH, seed=6).double().requires_grad_(), randn(2, WIDTH, seed=7).double().softmax(-1)
    assert torch.autograd.gradcheck(
        lambda x: prototypes.soft_cross_entropy(x, target, 0.5), logits, atol=1e-3, eps=1e-3
    )


def test_small_losses_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(prototypes, "_parts", parts)
    prototypes.cross_view(randn(4, 3, WIDTH, seed=8), randn(2, 3, WIDTH, seed=9).softmax(-1), 0.1)
