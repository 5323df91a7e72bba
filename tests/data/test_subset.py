from __future__ import annotations

import numpy as np
import pytest

from unlabeled.data.subset import stratified
from unlabeled.errors import UserError

# 100 of class 0, 30 of class 1, 4 of class 2, one of class 3, 20 unlabelled, in no order
LABELS = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat([0, 1, 2, 3, -1], [100, 30, 4, 1, 20]))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_takes_the_same_share_of_every_class_and_at_least_one(fraction: float) -> None:
    chosen = stratified(LABELS, fraction, seed=3)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(LABELS[chosen]).tolist() == [max(1, round(fraction * n)) for n in (100, 30, 4, 1)]


def test_smaller_shares_are_inside_larger_ones() -> None:
    one, ten, half = (set(stratified(LABELS, fraction, seed=1)) for fraction in (0.01, 0.1, 0.5))
    assert one < ten < half


def test_the_choice_is_part_of_the_protocol() -> None:
    # published few-label numbers rest on these very samples
    labels = np.arange(40) % 4
    assert stratified(labels, 0.1, seed=0).tolist() == [1, 19, 28, 38]
    assert stratified(labels, 0.1, seed=1).tolist() == [2, 19, 33, 36]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, 10.0, float("nan")])
def test_refuses_what_is_no_share(fraction: float) -> None:
    with pytest.raises(UserError, match=r"\(0, 1\]"):
        stratified(LABELS, fraction, seed=0)


def test_nothing_labelled_chooses_nothing() -> None:
    assert len(stratified(np.full(5, -1), 0.5, seed=0)) == 0
