"""Benchmarks that run and compare like with like. Times are not tested."""

from __future__ import annotations

import sys

import pytest
import torch
from support import ROOT

from unlabeled.methods import names

sys.path.insert(0, str(ROOT / "benchmarks"))
import contenders
import step

every_method = pytest.mark.parametrize("name", contenders.METHODS)


def test_every_method_is_measured() -> None:
    assert sorted(contenders.METHODS) == names()


@every_method
def test_our_steps_run(name: str) -> None:
    method = contenders.comparison(name)
    for contender in (step.OURS, *method.variants):
        assert torch.isfinite(step.make_step(method, contender, depth=1, pictures=2)())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@every_method
def test_lightly_does_the_same(name: str) -> None:
    pytest.importorskip("lightly")
    method = contenders.comparison(name)
    assert torch.isfinite(step.make_step(method, step.LIGHTLY, depth=1, pictures=2)())
    loss, gradient = step.disagreement(method)
    assert loss < 1e-6 and gradient < 1e-6


def test_products_of_a_small_network_counted_by_hand() -> None:
    """One block of width 2 over 3 tokens: qkv, proj, two of the MLP's, and attention's two."""
    parts = contenders.parts
    products = [(3, 2, 6), (3, 2, 2), (3, 2, 8), (3, 8, 2), (3, 2, 3), (3, 3, 2)]
    assert parts.blocks(3, 2, 1) * 1e9 == pytest.approx(sum(2 * a * b * c for a, b, c in products))
    assert parts.linear(3, 2, 6, 5) * 1e9 == pytest.approx(2 * 3 * (2 * 6 + 6 * 5))
