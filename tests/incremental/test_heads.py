"""Heads by cosines, one proxy at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unlabeled.incremental.heads import Cosines, LocalSimilarity


def cosine(x: Tensor, y: Tensor) -> float:
    return float((x @ y / (x.norm() * y.norm())).detach())


def test_similarities_one_proxy_at_a_time() -> None:
    torch.manual_seed(0)
    head, x = LocalSimilarity(4, 3, 2).double(), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        head.scale.fill_(1.7)
    for i in range(5):
        for k in range(3):
            raw = [2 * cosine(x[i], p) - 2 for p in head.weights[2 * k : 2 * k + 2].detach()]
            weights = [math.exp(r) / sum(map(math.exp, raw)) for r in raw]
            expected = sum(w * r for w, r in zip(weights, raw, strict=True))
            assert float(head.similarities(x)[i, k].detach()) == pytest.approx(expected)
            assert float(head(x)[i, k].detach()) == pytest.approx(1.7 * expected)


def test_a_head_keeps_the_proxies_and_the_scale_of_the_one_before() -> None:
    first = LocalSimilarity(4, 3, 2)
    assert first.known is None and [name for name, _ in first.named_parameters()] == ["coming", "scale"]
    with torch.no_grad():
        first.scale.fill_(2.5)
    second = LocalSimilarity(4, 2, 2, first)
    third = LocalSimilarity(4, 1, 2, second)
    assert third.known is not None and third.known.equal(second.weights) and len(third.weights) == 12
    assert third.weights[:6].equal(first.weights) and third.scale == 2.5
    for learns in (first, second):
        nn.init.zeros_(learns.coming)
    assert second.weights[:6].all() and third.weights[6:10].all(), "copies"


def test_a_state_is_read_again() -> None:
    one, two = (LocalSimilarity(4, 2, 3, LocalSimilarity(4, 3, 3)) for _ in range(2))
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 4)
    assert one(x).equal(two(x))


def test_cosines_of_two_spaces_one_class_at_a_time() -> None:
    torch.manual_seed(0)
    head, x = Cosines(8, 3, (0.25, 0.75), 16.0).double(), torch.randn(5, 8, dtype=torch.float64)
    for i in range(5):
        for k in range(3):
            slow, fast = cosine(x[i, :4], head.proxies[0, k]), cosine(x[i, 4:], head.proxies[1, k])
            assert float(head(x)[i, k].detach()) == pytest.approx(16 * (0.25 * slow + 0.75 * fast))


def test_proxies_of_both_spaces_stay() -> None:
    first = Cosines(8, 3, (0.5, 0.5), 16.0)
    second = Cosines(8, 5, (0.5, 0.5), 16.0, first)
    assert second.proxies.shape == (2, 5, 4) and second.proxies[:, :3].equal(first.proxies)
    assert second.proxies[:, 3:].all()
