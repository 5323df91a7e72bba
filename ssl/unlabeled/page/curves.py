"""The measures of a run as curves of few points, read on from `metrics.jsonl` while it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlabeled.page.lines import Growing, finite
from unlabeled.report.visuals import Line

MOST = 2000  # points of a curve
DIGITS = 6  # significant ones of a value
LEFT_OUT = ("step", "epoch")
Floats = NDArray[np.float64]


class Curve:
    """The readings of a measure, in buckets of `width` readings each: their mean, smallest and largest value.

    When there are more than `MOST` buckets, two neighbours become one. Readings that are no finite number count in
    their bucket's width alone.
    """

    def __init__(self) -> None:
        self.width, self.readings = 1, 0
        self.steps, self.sums, self.counts = np.zeros(0), np.zeros(0), np.zeros(0)
        self.low, self.high = np.zeros(0), np.zeros(0)
        self.first = self.best = self.last = (0, math.nan)  # step and value; best = largest

    def add(self, steps: Sequence[int], values: Sequence[float] | Floats) -> None:
        """Add readings; steps ascend."""
        at, found = np.asarray(steps, np.float64), np.asarray(values, np.float64)
        place = (self.readings + np.arange(len(at))) // self.width
        self._make_room(int(place[-1]) + 1)
        np.maximum.at(self.steps, place, at)
        good = np.isfinite(found)
        at, place, found = at[good], place[good], found[good]
        np.add.at(self.sums, place, found)
        np.add.at(self.counts, place, 1)
        np.minimum.at(self.low, place, found)
        np.maximum.at(self.high, place, found)
        self.readings += len(steps)
        while len(self.steps) > MOST:
            self._halve()
        self._remember(at, found)

    def line(self, name: str) -> Line:
        """The means over steps, at the last step of each bucket, with the range where buckets hold several readings."""
        with np.errstate(invalid="ignore"):
            mean = self.sums / self.counts
        steps = self.steps.tolist()  # whole numbers
        if self.width == 1:
            return Line(name, steps, _shown(mean))
        gap = self.counts == 0
        return Line(name, steps, _shown(mean), *(_shown(np.where(gap, np.nan, ends)) for ends in (self.low, self.high)))

    def _make_room(self, buckets: int) -> None:
        more = buckets - len(self.steps)
        if more > 0:
            fills = {"steps": 0.0, "sums": 0.0, "counts": 0.0, "low": np.inf, "high": -np.inf}
            for name, fill in fills.items():
                setattr(self, name, np.concatenate([getattr(self, name), np.full(more, fill)]))

    def _halve(self) -> None:
        self._make_room(len(self.steps) + len(self.steps) % 2)
        merges = {"steps": np.maximum, "sums": np.add, "counts": np.add, "low": np.minimum, "high": np.maximum}
        for name, merge in merges.items():
            pairs = getattr(self, name)
            setattr(self, name, merge(pairs[::2], pairs[1::2]))
        self.width *= 2

    def _remember(self, steps: Floats, values: Floats) -> None:
        if not len(values):
            return
        if math.isnan(self.first[1]):
            self.first = int(steps[0]), float(values[0])
        top = int(values.argmax())
        if not values[top] <= self.best[1]:
            self.best = int(steps[top]), float(values[top])
        self.last = int(steps[-1]), float(values[-1])


class Curves:
    """All measures of a run.

    Attributes:
        training: by name, those of the lines of training.
        scores: by name, those of evaluations.
        step: of the newest line.
    """

    def __init__(self, folder: Path) -> None:
        self._file = Growing(folder / "metrics.jsonl")
        self._forget()

    def _forget(self) -> None:
        self.training, self.scores = dict[str, Curve](), dict[str, Curve]()
        self.step = 0

    def read(self) -> None:
        """Read what was appended; all of it where the file was cut back or replaced, as when a run is resumed."""
        if self._file.replaced():
            self._forget()
        for block in self._file.read():
            self._take(block)

    def _take(self, block: Sequence[dict[str, Any]]) -> None:
        lines: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []  # of evaluations, of training
        for line in block:
            step = line.get("step")
            # other ones are broken, or of a file that somebody has put together
            if type(step) is int and self.step <= step < 1 << 53:
                self.step = step
                lines["loss" in line].append(line)
        for curves, these in zip((self.scores, self.training), lines, strict=True):
            for name in dict.fromkeys(name for line in these for name in line):
                if name not in LEFT_OUT:
                    having = [line for line in these if name in line]
                    values = _floats([line[name] for line in having])
                    if name in curves or not np.isnan(values).all():
                        curves.setdefault(name, Curve()).add([line["step"] for line in having], values)


def _floats(values: Sequence[Any]) -> Floats:
    """Values as floats; NaN for what is no number."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.asarray([math.nan if (number := finite(value)) is None else number for value in values])


def _shown(values: Floats) -> list[float | None]:
    """Values with `DIGITS` significant digits; None for what is not finite."""
    size = np.abs(np.where(np.isfinite(values) & (values != 0), values, 1.0))
    digits = DIGITS - 1 - np.floor(np.log10(size))
    # powers of ten are exact where they are whole numbers
    up, down = 10.0 ** np.clip(digits, 0, 300), 10.0 ** np.clip(-digits, 0, 300)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.round(values * up / down) / up * down
    return [value if math.isfinite(value) else None for value in rounded.tolist()]
