"""Comparison of an encoder with its baselines: most frequent class, raw pixels, untrained network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from unlabeled.evaluate.results import Column, EncoderScores
from unlabeled.report.intervals import bootstrap

WHAT_TO_TRY = (
    "What to try: other features (--pool mean, --set linear.blocks=[1,4]), fine-tuning (unlabeled ladder), "
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
