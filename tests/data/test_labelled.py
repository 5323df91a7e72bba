"""Which labelled pictures are learnt from, which are watched and which are scored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unlabeled.errors import UserError
from unlabeled.train.watch import Watching
from unlabeled.transfer.labels import Amount, Labelled, chosen, labelled

# 100 of each of five classes and 40 unlabelled, in no order
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4, -1], [100] * 5 + [40]))


def source(labels: np.ndarray) -> Any:
    return SimpleNamespace(labels=labels, classes=tuple("abcde"), boxed=False, key=str)


def opened(watch: Watching | None, labels: np.ndarray = LABELS, **task: Any) -> Labelled:
    splits = {"train": source(labels), "val": source(np.arange(10) % 5)}
    data: Any = SimpleNamespace(**splits, config=SimpleNamespace(has_val=True), check_apart=lambda *_: None)
    return labelled(data, Amount(**task, hold_out=None if watch is None else watch.hold_out))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, [100] * 5),
        ({"fraction": 0.2}, [20] * 5),
        ({"shots": 3}, [3] * 5),
        ({"long_tail": 16}, [100, 50, 25, 12, 6]),
        ({"long_tail": 16, "fraction": 0.5}, [50, 25, 12, 6, 3]),
        ({"long_tail": 16, "shots": 4}, [4] * 5),
    ],
)
def test_a_task_says_how_many_of_each_class_are_learnt_from(task: dict[str, Any], expected: list[int]) -> None:
    rows = chosen(LABELS, Amount(**task))
    assert np.bincount(LABELS[rows]).tolist() == expected and rows.tolist() == sorted(rows.tolist())
    other = chosen(LABELS, Amount(**task, seed=1))
    assert np.bincount(LABELS[other]).tolist() == expected and (set(other) != set(rows)) == bool(task)


def test_what_is_watched_is_a_share_of_every_class_and_not_learnt_from() -> None:
    train, watched, test = opened(Watching(every=1, hold_out=0.3), fraction=0.5)
    assert watched is not None and test.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert np.bincount(train.labels).tolist() == [35] * 5 and np.bincount(watched.labels).tolist() == [15] * 5
    keys = [part.key(i) for part in (train, watched) for i in range(len(part))]
    assert len(set(keys)) == 250 and sorted(map(int, keys)) == chosen(LABELS, Amount(fraction=0.5)).tolist()


def test_nothing_is_held_out_where_the_test_pictures_are_watched_or_none() -> None:
    train, watched, test = opened(Watching(every=1, hold_out=0))
    assert len(train) == 500 and watched is test
    train, watched, _ = opened(None)
    assert len(train) == 500 and watched is None


def test_a_class_without_labelled_pictures_is_named() -> None:
    with pytest.raises(UserError, match="1 of 5 classes have no picture to learn from, the first: d"):
        opened(None, np.where(LABELS == 3, -1, LABELS))


def test_of_every_class_a_picture_is_left_to_learn_from() -> None:
    train, watched, _ = opened(Watching(every=1, hold_out=0.9), shots=3)
    assert watched is not None and np.bincount(watched.labels).tolist() == [2] * 5
    assert np.bincount(train.labels).tolist() == [1] * 5


def test_the_only_picture_of_a_class_is_learnt_from() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 3, 4])
    train, watched, _ = opened(Watching(every=1, hold_out=0.1), labels)
    assert watched is not None and sorted(watched.labels) == [0, 2] and sorted(train.labels) == [0, 0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"watch.hold_out is 0.1, but no class has two"):
        opened(Watching(every=1, hold_out=0.1), shots=1)
