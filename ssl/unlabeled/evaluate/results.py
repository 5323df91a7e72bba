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

MOST_NAMED = 1000  # classes that are listed
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
        """Its lines in a table."""
        words = self.name.replace("knn", "kNN").split("_")
        return words if self.fraction is None else [*words, f"{100 * self.fraction:g} %"]


@dataclass
class Result:
    """One score of one encoder, once for every seed.

    Attributes:
        labels: how many training labels it rests on; None = it reads none.
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
    def digits(self) -> int:
        """How many a table shows after the point."""
        return self.found[0].digits

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of bootstrap samples of the test pictures or episodes have a mean within; None where it has no such
        parts. Of several seeds, each part is their mean."""
        each = [score.each for score in self.found if score.each is not None]
        return bootstrap(np.mean(each, axis=0)) if each else None

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
    """One encoder: its scores, and how many pictures they rest on.

    The effective rank is of the test features (RankMe, Garrido et al. 2023), at most as many as there are dimensions.

    Attributes:
        fingerprints: of the pictures of each split.
        cost: seconds, CPU seconds, and pictures encoded per second.
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
    """The scores that any row has."""
    return list(dict.fromkeys(column for row in rows for column in row.scores))


def brief(rows: Sequence[EncoderScores], protocols: Mapping[str, Protocol], verdicts: Sequence[str] = ()) -> Document:
    """The scores for a terminal, without intervals and costs."""
    shown = columns(rows)
    found = [[row.scores.get(column) for column in shown] for row in rows]
    cells = [[estimate(r.mean, r.std, digits=r.digits) if r else "-" for r in line] for line in found]
    head = ["", *("\n".join(column.heading) for column in shown), "effective\nrank"]
    lines = [[row.name, *line, rank(row)] for row, line in zip(rows, cells, strict=True)]
    table = Table(head, lines, title=f"{units(protocols)} (mean ± std over draws of the labels)")
    return Document("", [table, *map(Text, verdicts)])


def with_recalls(score: Score, labels: np.ndarray, names: Sequence[str]) -> Score:
    """An accuracy with that of every class, their mean, and how uneven the classes are.

    Args:
        score: whose `each` is 100 for pictures that were recognised and 0 for others.
        labels: [n] of the same pictures.
        names: of the classes.
    """
    if score.each is None or len(score.each) != len(labels):
        return score
    counts = np.bincount(labels, minlength=len(names))
    recalls = np.bincount(labels, score.each, minlength=len(names)) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    found: dict[str, Any] = {"balanced_accuracy": float(recalls[present].mean())}
    found["uneven"] = float(counts.max() / counts[present].min())
    if len(names) <= MOST_NAMED:
        found["recall"] = {names[i]: round(float(recalls[i]), 3) for i in present.tolist()}
    return score._replace(details={**(score.details or {}), **found})


def _uneven(rows: Sequence[EncoderScores]) -> list[Part]:
    """Balanced accuracies, where classes of the test images are uneven."""
    shown = {row.name: {c: b for c, r in row.scores.items() if (b := _balanced(r))} for row in rows}
    columns = list(dict.fromkeys(column for found in shown.values() for column in found))
    uneven = max((ratio for found in shown.values() for _, ratio in found.values()), default=1.0)
    if uneven < UNEVEN:
        return []
    cells = [
        [name, *(f"{found[column][0]:.1f}" if column in found else "-" for column in columns)]
        for name, found in shown.items()
        if found
    ]
    words = (
        f"The largest class of the test pictures has {uneven:.1f} times as many as the smallest. Balanced accuracy, "
        "the mean recall of the classes, %:"
    )
    return [Text(words), Table(["encoder", *(" ".join(column.heading) for column in columns)], cells)]


def _balanced(result: Result) -> tuple[float, float] | None:
    """The mean recall of the classes over seeds, and how uneven they are."""
    found = [score.details for score in result.found if score.details and "uneven" in score.details]
    return (statistics.mean(one["balanced_accuracy"] for one in found), found[0]["uneven"]) if found else None


def full(
    rows: Sequence[EncoderScores], protocols: Mapping[str, Protocol], verdicts: Sequence[str], data: Mapping[str, Any]
) -> Document:
    """The scores with intervals and costs, and details where there are some.

    Args:
        rows: encoders and baselines, at least one.
        protocols: by the names of their scores.
        verdicts: the last sentences.
        data: for programs.
    """
    shown = columns(rows)
    cells = [
        [row.name, *(_cell(row.scores.get(column)) for column in shown), rank(row), f"{row.cost['cpu_seconds']:.0f}"]
        for row in rows
    ]
    head = ["encoder", *(" ".join(column.heading) for column in shown), "effective rank", "CPU seconds"]
    versions = ", ".join(protocol.version for protocol in protocols.values())
    meaning = (
        f"{units(protocols)}. Mean ± standard deviation over draws of the labels [95 % interval by bootstrap over test "
        f"pictures or episodes]. {rows[0].train_size:,} training and {rows[0].test_size:,} test pictures. Protocols "
        f"{versions}."
    )
    parts = [Table(head, cells), Text(meaning), *_uneven(rows), *_ious(rows), *map(Text, verdicts)]
    return Document("", parts, data)


def _ious(rows: Sequence[EncoderScores]) -> list[Part]:
    """The IoU of every class, where masks were predicted."""
    found = {row.name: score.details["iou"] for row in rows for score in _scores_with_iou(row)}
    if not found:
        return []
    classes = dict.fromkeys(name for each in found.values() for name in each)
    cells = [[name, *(_percent(each.get(name)) for each in found.values())] for name in classes]
    return [Text("IoU of every class, by the value of its pixels in masks, %:"), Table(["class", *found], cells)]


def _scores_with_iou(row: EncoderScores) -> list[Any]:
    return [score for result in row.scores.values() for score in result.found[:1] if "iou" in (score.details or {})]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def units(protocols: Mapping[str, Protocol]) -> str:
    """The unit of the scores, per protocol if they differ."""
    named: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        named.setdefault(protocol.unit, []).append(name)
    if len(named) == 1:
        return next(iter(named))
    return "; ".join(f"{', '.join(names)}: {unit}" for unit, names in named.items())


def rank(row: EncoderScores) -> str:
    """`31 of 192`."""
    return f"{row.effective_rank:.0f} of {row.dimensions}" if row.dimensions else "-"


def _cell(result: Result | None) -> str:
    return estimate(result.mean, result.std, result.interval, result.digits) if result else "-"
