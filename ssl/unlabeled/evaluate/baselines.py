"""Comparison of an encoder with its baselines: most frequent class, raw pixels, untrained network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unlabeled.evaluate.protocol import ACCURACY, Score
from unlabeled.evaluate.results import Column, EncoderScores, Result, with_recalls
from unlabeled.evaluate.splits import Splits
from unlabeled.report.intervals import bootstrap

WHAT_TO_TRY = (
    "What to try: other features (--pool mean, --set linear.blocks=[1,4]), fine-tuning (python -m unlabeled ladder), "
    "more epochs or pictures, crops as large as what tells the classes apart, another method"
)


class Gain(NamedTuple):
    """The gain of an encoder over the best baseline in one score.

    Attributes:
        column: the score.
        value, best: of the encoder and of that baseline.
        baseline: its name.
        interval: of the difference, 95 % by bootstrap over test images, the same ones for both.
    """

    column: Column
    value: float
    best: float
    baseline: str
    interval: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether it is better beyond the interval."""
        return self.interval[0] > 0


def majority(splits: Splits, like: EncoderScores) -> EncoderScores:
    """The row of predicting the most frequent class of training for every test image, in all accuracies."""
    train, test = (source.labels[source.labels >= 0] for source in splits.sources)
    each = 100.0 * (test == np.bincount(train).argmax())
    score = with_recalls(Score("majority", float(each.mean()), each), test, splits.sources[0].classes)
    scores = {
        column: Result(result.labels, [score._replace(name=column.name)], result.unit)
        for column, result in like.scores.items()
        if result.unit == ACCURACY and not column.name.endswith("top5")
    }
    cost = {"seconds": 0.0, "cpu_seconds": 0.0, "pictures_per_second": 0.0}
    return EncoderScores(
        "most frequent class", like.shape, 0, len(train), len(test), 0.0, like.fingerprints, scores, cost
    )


def gains(row: EncoderScores, baselines: Sequence[EncoderScores]) -> list[Gain]:
    """The gain in every score that is a mean over test images and that a baseline has too."""
    found = []
    for column, result in row.scores.items():
        if rivals := [other for other in baselines if column in other.scores]:
            rival = max(rivals, key=lambda other: other.scores[column].mean)
            best, ours, theirs = rival.scores[column].mean, result.each, rival.scores[column].each
            if ours is not None and theirs is not None and ours.shape == theirs.shape:
                found.append(Gain(column, result.mean, best, rival.name, bootstrap(ours - theirs)))
    return found


def verdict(row: EncoderScores, baselines: Sequence[EncoderScores]) -> str | None:
    """Say whether pretraining paid, and what to try where it did not; None where nothing can be compared."""
    found = gains(row, baselines)
    if not found:
        return None
    not_clear = [gain for gain in found if not gain.clear]
    told = "; ".join(_words(gain) for gain in (not_clear or found))
    if not not_clear:
        return f"{row.name}: pretraining paid in every score: {told}."
    where = "" if len(not_clear) == len(found) else f" in {len(not_clear)} of {len(found)} scores"
    return f"{row.name}: pretraining did not pay{where}: {told}. {WHAT_TO_TRY}."


def _words(gain: Gain) -> str:
    low, high = gain.interval
    name = gain.column.key.replace("_", " ").replace("knn", "kNN")
    return f"{name} {gain.value:.1f} against {gain.best:.1f} of {gain.baseline}, difference [{low:.1f}, {high:.1f}]"


def summary(row: EncoderScores, baselines: Sequence[EncoderScores]) -> dict[str, Any]:
    """The same as JSON, by score."""
    return {
        gain.column.key: {
            "best": gain.best,
            "baseline": gain.baseline,
            "difference": gain.value - gain.best,
            "interval": gain.interval,
            "clear": gain.clear,
        }
        for gain in gains(row, baselines)
    }
