"""How well scores tell known images from unknown ones: AUROC, AUPR both ways, FPR95; with intervals by the bootstrap.

Unknown images are the positives. Higher scores = known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.report.intervals import percentiles, resampled

FOUND = 0.95  # share of the unknown images that must be found
DRAWN_AT_ONCE = 1 << 21
Values = NDArray[np.float64]


class Measures(NamedTuple):
    """Measures in percent.

    Attributes:
        auroc: area under the ROC curve: how often an unknown image scores lower than a known one, ties count half.
        aupr_known: area under precision over recall of the known images.
        aupr_unknown: the same of the unknown ones.
        fpr95: share of KNOWN images that are flagged where 95 % of the UNKNOWN ones are found. Many papers mean the
            share of unknown images that pass where 95 % of the known ones do.
    """

    auroc: float
    aupr_known: float
    aupr_unknown: float
    fpr95: float

    @classmethod
    def of(cls, values: Values) -> Measures:
        """From numbers [4] in this order."""
        return cls(*values.tolist())


class Ranked:
    """Images in order of their scores, to be measured with any weights.

    Args:
        scores: [n], higher = known.
        unknown: [n] bool.
    """

    def __init__(self, scores: Values, unknown: NDArray[np.bool_]) -> None:
        self.order = np.argsort(scores, kind="stable")
        ranked = scores[self.order]
        self.unknown = unknown[self.order]
        # equal scores pass together: the last place of each
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def measure(self, weights: Values | None = None) -> Values:
        """Measure images that count as often as weights [R, n] say; None = once each, and R = 1. Returns [4, R] in the
        order of `Measures`."""
        weights = np.ones((1, len(self.order))) if weights is None else weights[:, self.order]
        positive = np.cumsum(weights * self.unknown, axis=1)[:, self.ends]
        negative = np.cumsum(weights * ~self.unknown, axis=1)[:, self.ends]
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN where one kind is missing
            found, flagged = positive / positive[:, -1:], negative / negative[:, -1:]
            first = np.argmax(found >= FOUND, axis=1)
            return 100 * np.stack(
                [
                    _area(flagged, found, 0.0),
                    _recall_area(_from_above(negative), _from_above(positive)),
                    _recall_area(positive, negative),
                    np.take_along_axis(flagged, first[:, None], 1)[:, 0],
                ]
            )


def _from_above(counts: Values) -> Values:
    """Counts at or below thresholds [R, P] as those above them, the highest threshold first [R, P + 1]."""
    whole = counts[:, -1:]
    return np.concatenate([(whole - counts)[:, ::-1], whole], 1)


def _area(x: Values, y: Values, start: float) -> Values:
    """The area [R] under lines through (0, start) and points (x, y) [R, P], x ascending."""
    before = np.concatenate([np.full((len(y), 1), start), y[:, :-1]], 1)
    return (np.diff(x, axis=1, prepend=0.0) * (y + before) / 2).sum(1)


def _recall_area(right: Values, wrong: Values) -> Values:
    """The area [R] under precision over recall, from (0, 1) on, with straight lines between thresholds; `right` and
    `wrong` [R, P] are counts above ever lower thresholds."""
    total = right + wrong
    precision = np.where(total > 0, right / np.maximum(total, 1e-300), 1.0)
    return _area(right / right[:, -1:], precision, 1.0)


def measure(scores: Values, unknown: NDArray[np.bool_]) -> Measures:
    """Measures of scores [n] of images, some of which are `unknown` [n], some not."""
    return Measures.of(Ranked(scores, unknown).measure()[:, 0])


class Trial(NamedTuple):
    """Scores of images in one split of the classes: scores [n], and whether each image is unknown [n]."""

    scores: Values
    unknown: NDArray[np.bool_]


def measured(
    trials: Sequence[Trial], seed: int = 0, draws: int = 1000
) -> tuple[Measures, dict[str, tuple[float, float]]]:
    """Means of the measures over trials on the same n images, and their 95 % intervals.

    Images are drawn with replacement, the same ones for all trials (Efron 1979). Draws in which one kind is missing are
    left out.

    Args:
        trials: at least one.
        seed: of the draws.
        draws: number of samples of n images.
    """
    ranked, n = [Ranked(*trial) for trial in trials], len(trials[0].scores)
    mean = Measures.of(np.mean([one.measure()[:, 0] for one in ranked], axis=0))
    samples = resampled(n, draws, seed, DRAWN_AT_ONCE)
    parts = [np.mean([one.measure(weights) for one in ranked], axis=0) for weights in samples]
    found = np.concatenate(parts, axis=1)
    return mean, {name: percentiles(row) for name, row in zip(Measures._fields, found, strict=True)}
