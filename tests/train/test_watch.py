"""Watching a score: the counters, what a run does on them, and that a killed run comes to the same end."""

from __future__ import annotations

import json
from typing import Any

from unlabeled.train.schedule import Lowering
from unlabeled.train.watch import EarlyStopping, Watching


def watch(metric: Any = "accuracy", plateau: int | None = None, **settings: Any) -> EarlyStopping:
    schedule = None if plateau is None else Lowering(0.5, plateau)
    return EarlyStopping(Watching(every=1, metric=metric, **settings), lambda _: {}, schedule)


def test_best_patience_and_plateau() -> None:
    watching = watch(patience=4, plateau=2)
    history = []
    for step, score in enumerate([50.0, 60.0, 60.0, 59.0, 58.0, 61.0, 60.0, 60.0, 60.0, 60.0], start=1):
        watching.read(step, score)
        history.append((watching.best_step, watching.rate, watching.over))
    assert [best for best, _, _ in history] == [1, 2, 2, 2, 2, 6, 6, 6, 6, 6]
    assert [rate for _, rate, _ in history] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [over for _, _, over in history] == [False] * 9 + [True]


def test_what_is_kept() -> None:
    best, last = watch(), watch(keep="last")
    for step, score in enumerate([50.0, 60.0, 59.0], start=1):
        best.read(step, score)
        last.read(step, score)
    assert (best.kept_step, last.kept_step) == (2, None)


def test_less_is_better_of_a_likelihood_lost_and_nan_never_is() -> None:
    watching = watch("nll", min_delta=0.1)
    for step, score in enumerate([1.0, 0.95, 0.8, float("nan"), 0.9], start=1):
        watching.read(step, score)
    assert (watching.best, watching.best_step, watching.since_best) == (0.8, 3, 2)


def test_a_first_score_that_is_nan_is_not_the_best() -> None:
    watching = watch("nll", patience=3)
    assert watching.read(1, float("nan")) == "" and watching.kept_step is None
    for step, score in ((2, 5.0), (3, float("nan"))):
        watching.read(step, score)
    assert (watching.best, watching.kept_step, watching.since_best) == (5.0, 2, 1)
    lost = watch("nll", patience=1)
    assert lost.read(4, float("nan")) == "nll has not improved since step 0: the run ends here" and lost.over


def test_it_goes_on_from_what_was_noted() -> None:
    scores = [1.0, 2.0, 1.0, 1.0, 1.0, 3.0, 1.0]
    through, first = watch(patience=9, plateau=2), watch(patience=9, plateau=2)
    for step, score in enumerate(scores):
        through.read(step, score)
    for step, score in enumerate(scores[:4]):
        first.read(step, score)
    second = watch(patience=9, plateau=2)
    second.restore(json.loads(json.dumps(first.state())))
    for step, score in enumerate(scores[4:], start=4):
        second.read(step, score)
    assert second.state() == through.state() and second.rate == through.rate < 1
