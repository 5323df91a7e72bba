"""Losses against loops that one believes at a glance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.curves import Temperature, cosine, warmup
from unlabeled.nn.loss.contrast import info_nce, nt_xent
from unlabeled.nn.loss.prototypes import cross_view, masked_patches, sharpen
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.loss.spread import CodingRate, koleo


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cos(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def entropy_of_pair(target: Tensor, logits: Tensor) -> float:
    return -sum(t * math.log(p) for t, p in zip(target.tolist(), logits.softmax(0).tolist(), strict=True))


def test_info_nce_of_two_ranks_keys() -> None:
    queries, keys = randn(3, 8), randn(6, 8, seed=1)
    expected = 0.0
    for i in range(3):
        scores = [math.exp(cos(queries[i], key) / 0.2) for key in keys]
        expected -= math.log(scores[3 + i] / sum(scores)) / 3
    assert info_nce(queries, keys, offset=3, temperature=0.2).item() == pytest.approx(0.4 * expected, rel=1e-5)


def test_nt_xent() -> None:
    a, b = randn(4, 8), randn(4, 8, seed=1)
    both = torch.cat([a, b])
    expected = 0.0
    for i in range(8):
        scores = {j: math.exp(cos(both[i], both[j]) / 0.5) for j in range(8) if j != i}
        expected -= math.log(scores[(i + 4) % 8] / sum(scores.values())) / 8
    assert nt_xent(a, b, 0.5).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("views", [2, 5])
def test_cross_view(views: int) -> None:
    student, teacher = randn(views, 3, 7), randn(2, 3, 7, seed=1).softmax(-1)
    terms = [
        entropy_of_pair(teacher[q, row], student[v, row] / 0.3)
        for q in range(2)
        for v in range(views)
        if v != q
        for row in range(3)
    ]
    expected = sum(terms) / len(terms)
    assert cross_view(student, teacher, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_masked_patches() -> None:
    """Three crops with 2, 0 and 1 hidden patches, and one row that only pads."""
    student, teacher = randn(4, 5), randn(4, 5, seed=1).softmax(-1)
    first, second, other = (entropy_of_pair(teacher[i], student[i] / 0.1) for i in range(3))
    expected = ((first + second) / 2 + 0 + other) / 3
    weight = torch.tensor([0.5, 0.5, 1.0, 0.0])
    assert masked_patches(student, teacher, weight, 3, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_sharpen_subtracts_before_it_divides() -> None:
    logits, centre = randn(2, 4).requires_grad_(), randn(4, seed=1)
    for row in range(2):
        scores = [math.exp((logits[row, k] - centre[k]).item() / 0.05) for k in range(4)]
        torch.testing.assert_close(sharpen(logits, centre, 0.05)[row], torch.tensor(scores) / sum(scores))
    assert not sharpen(logits, centre, 0.05).requires_grad


def test_sinkhorn_shares_out_samples_and_prototypes() -> None:
    logits = randn(12, 4)
    plan = sinkhorn(logits, 0.5, iterations=50)
    torch.testing.assert_close(plan.sum(1), torch.ones(12))
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 3.0), rtol=1e-4, atol=0)
    scores = logits / 0.5
    # what distinguishes two samples between two prototypes is untouched: the plan is scaled rows and columns
    cross = (plan[0, 0] * plan[1, 1] / (plan[0, 1] * plan[1, 0])).log()
    torch.testing.assert_close(cross, scores[0, 0] + scores[1, 1] - scores[0, 1] - scores[1, 0])


def test_sinkhorn_keeps_prototypes_that_are_far_from_all_samples() -> None:
    """The official rule in double precision: exp(logits / T), prototypes by their sum, then samples."""
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) / 20
    logits = noise + torch.linspace(-3.2, 3.2, 4)
    plan = (logits.double() / 0.04).exp()
    for _ in range(3):
        plan = plan / plan.sum(0)
        plan = plan / plan.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(logits, 0.04).double(), plan, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sinkhorn(logits[:1] * 3, 0.04), torch.full((1, 4), 0.25))


def test_sinkhorn_ignores_padding_and_survives_large_logits() -> None:
    logits = randn(5, 6)
    valid = torch.tensor([True, False, True, True, False])
    padded = sinkhorn(torch.where(valid.unsqueeze(1), logits, 1e4), 0.1, valid=valid)
    torch.testing.assert_close(padded[valid], sinkhorn(logits[valid], 0.1))
    assert not padded[~valid].any()
    assert sinkhorn(logits + 1000, 0.1).isfinite().all()


def test_koleo() -> None:
    x = randn(6, 4)
    expected = 0.0
    unit = F.normalize(x, dim=1)
    for i in range(6):
        nearest = min((unit[i] - unit[j]).norm().item() for j in range(6) if j != i)
        expected -= math.log(nearest) / 6
    assert koleo(x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("views", "rows", "width", "eps"), [(2, 5, 7, 0.5), (4, 9, 6, 0.05), (3, 2, 16, 0.01)])
def test_coding_rate(views: int, rows: int, width: int, eps: float) -> None:
    """Of the mean of both networks' vectors, and agreement, pair by pair in double precision."""
    student, teacher = (
        F.normalize(randn(views, rows, width), dim=-1),
        F.normalize(randn(2, rows, width, seed=1), dim=-1),
    )
    pairs = [
        float(student[v, b].double() @ teacher[g, b].double())
        for v in range(views)
        for g in range(2)
        if v != g
        for b in range(rows)
    ]
    rate = 0.0
    for g in range(2):
        scatter = torch.eye(width, dtype=torch.float64)
        for b in range(rows):
            row = (student[g, b].double() + teacher[g, b].double()) / 2
            scatter += width / (rows * eps) * torch.outer(row, row)
        rate += torch.logdet(scatter).item() / 2 / 2 * (width + rows) / (width * rows)
    loss, measures = CodingRate(eps=eps, weight=0.7).compare(student, teacher)
    assert measures["compression"].item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5, abs=1e-6)
    assert measures["coding_rate"].item() == pytest.approx(rate, rel=1e-5)
    assert loss.item() == pytest.approx(-0.7 * sum(pairs) / len(pairs) - rate, rel=1e-5)


def test_the_spread_of_equal_rows_is_1() -> None:
    row = F.normalize(randn(1, 1, 256), dim=-1)
    _, measures = CodingRate().compare(row.expand(4, 64, 256), row.expand(2, 64, 256))
    assert measures["spread"].item() == pytest.approx(1, rel=1e-4)
    assert measures["coding_rate"].item() == pytest.approx(0.5 * math.log(1 + 256 / 0.05) * 0.01953125, rel=1e-4)


def test_masked_cosine() -> None:
    student, teacher, weight = randn(4, 6), randn(4, 6, seed=1), torch.tensor([0.5, 0.5, 1.0, 0.0])
    per_crop = [(cos(student[0], teacher[0]) + cos(student[1], teacher[1])) / 2, cos(student[2], teacher[2]), 0.0]
    assert -CodingRate().compare_hidden(student, teacher, weight, 3).item() == pytest.approx(
        sum(per_crop) / 3, rel=1e-5
    )


@pytest.mark.parametrize("loss", [lambda x: koleo(x), lambda x: info_nce(x, x, 0, 0.2), lambda x: nt_xent(x, x, 0.2)])
def test_products_stay_exact_under_autocast(loss: object) -> None:
    assert callable(loss)
    x = randn(6, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(x.float()))


def test_schedules() -> None:
    values = [warmup(0.04, 0.07, done) for done in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    assert values == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])
    assert [cosine(0.996, 1.0, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])


def test_teacher_temperature() -> None:
    by_epoch = Temperature(0.04, 0.07, 4)
    assert [by_epoch.at(e, 10) for e in (0, 0.9, 1, 2.5, 3, 9)] == pytest.approx([0.04, 0.04, 0.05, 0.06, 0.07, 0.07])
    by_step = Temperature(0.04, 0.07, 2, per_step=True)
    steps = [by_step.at(step / 2, 2) for step in range(6)]
    assert steps == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert Temperature(0.04, 0.07, 0).at(0, 10) == 0.07
    assert [Temperature(0.04, 0.07, 1).at(e, 10) for e in (0, 1)] == [0.04, 0.07]
    assert [Temperature(0.04, 0.07, n).at(-1, 10) for n in (0, 1, 3)] == [0.04] * 3  # before the warm-up
    # 7 steps per epoch: every epoch's first step counts to it, whatever the quotient was rounded to
    assert all(by_epoch.at(7 * e / 7, 7) == by_epoch.at((7 * e + 6) / 7, 7) for e in range(5))
