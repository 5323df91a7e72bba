from __future__ import annotations

import numpy as np
import pytest

from unlabeled.data.label.subset import exponential, few_shot, stratified
from unlabeled.errors import UserError

# 100 of class 0, 30 of class 1, 4 of class 2, one of class 3, 20 unlabelled, in no order
LABELS = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat([0, 1, 2, 3, -1], [100, 30, 4, 1, 20]))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_takes_the_same_share_of_every_class_and_at_least_one(fraction: float) -> None:
    chosen = stratified(LABELS, fraction, seed=3, at_least=1)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(LABELS[chosen]).tolist() == [max(1, round(fraction * n)) for n in (100, 30, 4, 1)]


def test_smaller_shares_are_inside_larger_ones() -> None:
    one, ten, half = (set(stratified(LABELS, fraction, seed=1, at_least=1)) for fraction in (0.01, 0.1, 0.5))
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


def test_a_share_that_leaves_a_class_empty_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves 2 of 4 classes .* class number 3 has 1. Use more than 0.5"):
        stratified(LABELS, 0.1, seed=0)
    assert np.bincount(LABELS[stratified(LABELS, 0.51, seed=0)]).tolist() == [51, 15, 2, 1]


def test_shots_are_as_many_of_every_class() -> None:
    labels = LABELS[LABELS < 3]
    two, four = few_shot(labels, 2, seed=5), few_shot(labels, 4, seed=5)
    assert np.bincount(labels[four]).tolist() == [4, 4, 4] and set(two) < set(four)
    assert set(few_shot(labels, 4, seed=6)) != set(four)
    with pytest.raises(UserError, match="5 shots were asked for, but class number 2 has 4"):
        few_shot(labels, 5, seed=0)


def test_classes_are_called_by_their_names() -> None:
    with pytest.raises(UserError, match=r"class number 3 \('wren'\) has 1"):
        stratified(LABELS, 0.1, seed=0, names=("owl", "kite", "robin", "wren"))
    with pytest.raises(UserError, match=r"class number 2 \('robin'\) has 4"):
        few_shot(LABELS[LABELS < 3], 5, seed=0, names=("owl", "kite", "robin"))


def test_a_long_tail_falls_exponentially() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(10).repeat(500))
    kept = exponential(labels, 100, seed=0)
    assert np.bincount(labels[kept]).tolist() == [int(500 * 100 ** (-i / 9)) for i in range(10)]
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert exponential(labels, 1, seed=0).tolist() == list(range(5000))
    few = np.arange(10).repeat(4)
    expected = [max(1, int(4 * 100 ** (-i / 9))) for i in range(10)]
    assert np.bincount(few[exponential(few, 100, seed=0)]).tolist() == expected and expected[-1] == 1
