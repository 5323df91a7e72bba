"""Scores of several encoders as a report: a short one for a terminal, and a full one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unlabeled.evaluate.protocol import ACCURACY, Protocol, Score, scored
from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.intervals import bootstrap, estimate
from unlabeled.report.visuals import Chart, Line

MOST_NAMED = 1000  # classes that are listed
UNKNOWN = {"auroc": "AUROC", "aupr_known": "AUPR known", "aupr_unknown": "AUPR unknown", "fpr95": "FPR95"}
UNEVEN = 1.5  # from here on the largest class counts for clearly more than the smallest


class Column(NamedTuple):
    """A score's name, and the share of the training labels where they are read."""

    name: str
    fraction: float | None

    @property
    def key(self) -> str:
        """`linear`, or `linear_1%` with one label in a hundred."""
        return scored(self.name, self.fraction or 1.0)

    @property
    def heading(self) -> list[str]:
        """Lines of its head in a table."""
        words = self.name.replace("knn", "kNN").split("_")
        return words if self.fraction is None else [*words, f"{100 * self.fraction:g} %"]


@dataclass
class Result:
    """One score of one encoder, once for every seed.

    Attributes:
        labels: number of training labels; None = it reads none.
        found: the score of each seed from 0 on.
        unit: of the protocol.
    """

    labels: int | None
    found: list[Score] = field(default_factory=list)
    unit: str = ACCURACY

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(score.value for score in self.found)

    @property
    def std(self) -> float | None:
        """Over seeds; None where there is one."""
        return statistics.stdev(score.value for score in self.found) if len(self.found) > 1 else None

    @property
    def each(self) -> np.ndarray | None:
        """[n] values of test images or episodes, means over seeds; None = there are none."""
        each = [score.each for score in self.found if score.each is not None]
        return np.mean(each, axis=0) if each else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of bootstrap samples of the test images or episodes have a mean within; of scores that have intervals
        of their own, the mean bounds over seeds."""
        if own := [score.interval for score in self.found if score.interval is not None]:
            low, high = np.mean(own, axis=0).tolist()
            return low, high
        return None if (each := self.each) is None else bootstrap(each)

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mean": self.mean,
            "std": self.std,
            "interval": self.interval,
            "values": [score.value for score in self.found],
            "seeds": list(range(len(self.found))),
            "labels": self.labels,
            "chosen": [score.chosen for score in self.found],
            "details": [score.details for score in self.found],
        }


@dataclass
class EncoderScores:
    """One encoder: its scores, and the number of images they rest on.

    Attributes:
        effective_rank: of the test features (RankMe, Garrido et al. 2023), at most `dimensions`.
        fingerprints: of the images of each split.
        cost: seconds, CPU seconds, and images encoded per second.
    """

    name: str
    shape: tuple[int, int]
    dimensions: int
    train_size: int
    test_size: int
    effective_rank: float
    fingerprints: dict[str, str]
    scores: dict[Column, Result]
    cost: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "scores": {column.key: result.summary() for column, result in self.scores.items()}}


def columns(rows: Sequence[EncoderScores]) -> list[Column]:
    """Scores that any row has."""
    return list(dict.fromkeys(column for row in rows for column in row.scores))


def brief(rows: Sequence[EncoderScores], protocols: Mapping[str, Protocol], verdicts: Sequence[str] = ()) -> Document:
    """The scores for a terminal, without intervals and costs."""
    shown = columns(rows)
    head = ["", *("\n".join(column.heading) for column in shown), "effective\nrank"]
    lines = [[row.name, *(_cell(row, column, intervals=False) for column in shown), rank(row)] for row in rows]
    table = Table(head, lines, title=f"{units(protocols)} (mean ± std over draws of the labels)")
    return Document("", [table, *map(Text, verdicts)])


def with_recalls(score: Score, labels: np.ndarray, names: Sequence[str]) -> Score:
    """Add the accuracy of every class, their mean and the imbalance of the classes to an accuracy.

    Args:
        score: its `each` is 100 for recognised images, 0 for others.
        labels: [n] of the same images.
        names: of the classes.
    """
    if score.each is None or len(score.each) != len(labels):
        return score
    counts = np.bincount(labels, minlength=len(names))
    recalls = np.bincount(labels, score.each, minlength=len(names)) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    uneven = float(counts.max() / counts[present].min())
    found: dict[str, Any] = {"balanced_accuracy": float(recalls[present].mean()), "uneven": uneven}
    if len(names) <= MOST_NAMED:
        found["recall"] = {names[i]: round(float(recalls[i]), 3) for i in present.tolist()}
    return score._replace(details={**(score.details or {}), **found})


def _uneven(rows: Sequence[EncoderScores]) -> list[Part]:
    """Balanced accuracies, where classes of the test images are uneven."""
    shown: dict[str, dict[Column, str]] = {}
    most = 1.0
    for row in rows:
        for column, result in row.scores.items():
            if found := [score.details for score in result.found if score.details and "uneven" in score.details]:
                most = max(most, found[0]["uneven"])
                mean = statistics.mean(one["balanced_accuracy"] for one in found)
                shown.setdefault(row.name, {})[column] = f"{mean:.1f}"
    if most < UNEVEN:
        return []
    columns = list(dict.fromkeys(column for found in shown.values() for column in found))
    cells = [[name, *(texts.get(column, "-") for column in columns)] for name, texts in shown.items()]
    words = (
        f"The largest class of the test pictures has {most:.1f} times as many as the smallest. Balanced accuracy, "
        "the mean recall of the classes, %:"
    )
    return [Text(words), Table(["encoder", *(" ".join(column.heading) for column in columns)], cells)]


def full(
    rows: Sequence[EncoderScores], protocols: Mapping[str, Protocol], verdicts: Sequence[str], data: Mapping[str, Any]
) -> Document:
    """The scores with intervals, costs and details of at least one row, `verdicts`, and `data` for programs."""
    shown = columns(rows)
    cells = [
        [row.name, *(_cell(row, column) for column in shown), rank(row), f"{row.cost['cpu_seconds']:.0f}"]
        for row in rows
    ]
    head = ["encoder", *(" ".join(column.heading) for column in shown), "effective rank", "CPU seconds"]
    versions = ", ".join(protocol.version for protocol in protocols.values())
    meaning = (
        f"{units(protocols)}. Mean ± standard deviation over draws of the labels [95 % interval by bootstrap over test "
        f"pictures or episodes]. {rows[0].train_size:,} training and {rows[0].test_size:,} test pictures. Protocols "
        f"{versions}."
    )
    parts = [
        Table(head, cells),
        Text(meaning),
        *_uneven(rows),
        *_charts(rows),
        *_ious(rows),
        *_unknown(rows),
        *map(Text, verdicts),
    ]
    return Document("", parts, data)


def _charts(rows: Sequence[EncoderScores]) -> list[Part]:
    """The scores of each unit as bars, those of an encoder in one colour."""
    named: dict[str, list[Column]] = {}
    for column in columns(rows):
        unit = next(row.scores[column].unit for row in rows if column in row.scores)
        named.setdefault(unit, []).append(column)
    found: list[Part] = []
    for unit, shown in named.items():
        means = {row.name: [row.scores[one].mean if one in row.scores else None for one in shown] for row in rows}
        lines = [Line(name, range(len(shown)), each) for name, each in means.items()]
        found.append(Chart(unit, lines, "", kind="bars", names=[" ".join(one.heading) for one in shown]))
    return found


def _ious(rows: Sequence[EncoderScores]) -> list[Part]:
    """The IoU of every class, where masks were predicted."""
    scores = ((row.name, score) for row in rows for result in row.scores.values() for score in result.found[:1])
    found = {name: score.details["iou"] for name, score in scores if score.details and "iou" in score.details}
    if not found:
        return []
    classes = dict.fromkeys(name for each in found.values() for name in each)
    texts = [{name: f"{v:.1f}" for name, v in each.items() if v is not None} for each in found.values()]
    cells = [[name, *(each.get(name, "-") for each in texts)] for name in classes]
    return [Text("IoU of every class, by the value of its pixels in masks, %:"), Table(["class", *found], cells)]


def _unknown(rows: Sequence[EncoderScores]) -> list[Part]:
    """All measures of unknown images against known ones, where they were told apart."""
    found: list[list[str]] = []
    for row in rows:
        for column, result in row.scores.items():
            each = [score.details for score in result.found if score.details and "fpr95" in score.details]
            if each:
                found.append([f"{row.name}: {' '.join(column.heading)}", *(_measure(each, name) for name in UNKNOWN)])
    if not found:
        return []
    words = (
        "Unknown pictures against known ones, %. FPR95 is the share of KNOWN pictures that are flagged where 95 % of "
        "the UNKNOWN ones are found; many papers mean the other way round."
    )
    return [Text(words), Table(["score", *UNKNOWN.values()], found)]


def _measure(found: Sequence[Mapping[str, Any]], name: str) -> str:
    """The mean of a measure over seeds, and the mean bounds of its interval."""
    low, high = np.mean([one["intervals"][name] for one in found], axis=0).tolist()
    return estimate(statistics.mean(one[name] for one in found), interval=(low, high), digits=1)


def units(protocols: Mapping[str, Protocol]) -> str:
    """The unit of the scores, per protocol if units differ."""
    named: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        named.setdefault(protocol.unit, []).append(name)
    if len(named) == 1:
        return next(iter(named))
    return "; ".join(f"{', '.join(names)}: {unit}" for unit, names in named.items())


def rank(row: EncoderScores) -> str:
    """`31 of 192`."""
    return f"{row.effective_rank:.0f} of {row.dimensions}" if row.dimensions else "-"


def _cell(row: EncoderScores, column: Column, intervals: bool = True) -> str:
    if (result := row.scores.get(column)) is None:
        return "-"
    return estimate(result.mean, result.std, result.interval if intervals else None, result.found[0].digits)
