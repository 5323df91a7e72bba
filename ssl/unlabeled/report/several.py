"""Compare fine-tuned runs: those that differ in seeds alone become one mean with its error."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from unlabeled.errors import UserError
from unlabeled.recipe import flat, updated
from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.intervals import estimate, repeated, student
from unlabeled.report.visuals import Chart, Line

SCORES = ("accuracy", "top5", "balanced_accuracy", "many", "medium", "few", "nll", "ece", "map", "map50", "miou")
HEADINGS = {
    "balanced_accuracy": "balanced accuracy",
    "top5": "top-5",
    "nll": "NLL, nats",
    "ece": "ECE",
    "map": "mAP",
    "map50": "mAP at 0.5",
    "miou": "mIoU",
}
DIGITS = {"nll": 4}
SEEDS, ENCODER = ("task.fraction_seed",), ("encoder", "encoder's weights")
SHOWN = 3  # names of runs in a cell
NOTE = (
    "Percent unless said; mean ± standard deviation over the runs [95 % interval: Student's t over the runs; of a "
    "single run, bootstrap over its pictures]. CPU seconds are those of one run."
)


class Finished(NamedTuple):
    """A finished fine-tuning.

    Attributes:
        name: its folder, as given.
        result: its `result.json`.
        settings: everything but the seeds that can change the result, by dotted path.
    """

    name: str
    result: dict[str, Any]
    settings: dict[str, Any]

    def score(self, name: str) -> float | None:
        """One of `SCORES`; None where it has no such score."""
        group = self.result["groups"].get(name)
        return self.result.get(name) if group is None else group["accuracy"]


class Repetitions(NamedTuple):
    """Runs that are repetitions of each other: a row of the table."""

    runs: list[Finished]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all of the runs share."""
        first, *others = (run.settings for run in self.runs)
        return {path: value for path, value in first.items() if all(other.get(path) == value for other in others)}

    @property
    def name(self) -> str:
        """The first few names of the runs."""
        more = len(self.runs) - SHOWN
        return ", ".join(run.name for run in self.runs[:SHOWN]) + (f" and {more} more" if more > 0 else "")

    @property
    def seeds(self) -> str:
        """`0, 1, 2`; the seed of the labels follows a slash where it is another."""
        pairs = [(run.result["seeds"]["run"], run.result["seeds"]["labels"]) for run in self.runs]
        return ", ".join(f"{run}" if run == labels else f"{run}/{labels}" for run, labels in pairs)

    @property
    def cost(self) -> str:
        """Mean CPU seconds."""
        return f"{statistics.mean(run.result['cost']['cpu_s'] for run in self.runs):,.0f}"

    def values(self, score: str) -> list[float]:
        """Values of a score, of the runs that have it."""
        return [value for run in self.runs if (value := run.score(score)) is not None]

    def cell(self, score: str) -> str:
        """A score with its error; the accuracy with its interval."""
        values, digits = self.values(score), DIGITS.get(score, 2)
        if not values:
            return "-"
        if score != "accuracy":
            return estimate(statistics.mean(values), _deviation(values), digits=digits)
        return repeated(values) if len(values) > 1 else estimate(values[0], interval=self.runs[0].result["interval"])

    def interval(self, score: str) -> tuple[float, float] | None:
        """95 %: Student's t over runs; of a single one, the accuracy's bootstrap; None where there is none."""
        if len(values := self.values(score)) > 1:
            mean, half = statistics.mean(values), student(values)
            return mean - half, mean + half
        return tuple(self.runs[0].result["interval"]) if score == "accuracy" else None

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        scores = {name: _summary(self.values(name)) for name in SCORES if self.values(name)}
        return {
            "runs": [run.name for run in self.runs],
            "seeds": [run.result["seeds"] for run in self.runs],
            "scores": scores,
            "bootstrap_intervals": [run.result["interval"] for run in self.runs],
            "cost": [run.result["cost"] for run in self.runs],
            "settings": self.settings,
            "fingerprints": [run.result["protocol"]["fingerprints"] for run in self.runs],
        }


def read_run(path: Path, is_free: Callable[[str], bool]) -> Finished:
    """Read a run from its folder or its `result.json`. Raises UserError where there is no result.

    `is_free` says whether a field of a recipe, by its dotted path, cannot change the result.
    """
    file = path if path.is_file() else path / "result.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; expected the folder of a fine-tuned run, runs/NAME.")
    if not file.is_file():
        said = f"{path} has no result.json: expected the folder of a run that `unlabeled finetune` finished"
        raise UserError(f"{said}. Finish it: the same command goes on.")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        result["protocol"] |= updated({"task": result["protocol"]["task"]})
        _ = result["seeds"], result["interval"], result["groups"]
        protocol = result["protocol"]
        sections = flat({name: protocol[name] for name in ("encoder", "task", "optim", "train", "watch", "data")})
        settings = {path: value for path, value in sections.items() if not is_free(path) and path not in SEEDS}
        settings["labelled pictures"] = protocol["labelled_pictures"]
        settings[ENCODER[1]] = protocol["fingerprints"]["encoder"]
        return Finished(str(path), result, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{file} is no result of `unlabeled finetune`: {error}. Leave it out, or run it again."
        raise UserError(said) from error


def grouped(runs: Sequence[Finished], over_encoders: bool = False) -> list[Repetitions]:
    """Put repetitions together, in the order of their first runs.

    Args:
        runs: at least one.
        over_encoders: whether runs that began from different weights, such as pretrained with other seeds, are
            repetitions too.

    Raises:
        UserError: results cannot be compared, or two runs are the same.
    """
    for run in runs[1:]:
        _comparable(runs[0], run)
    rows: dict[str, Repetitions] = {}
    for run in runs:
        told = {path: value for path, value in run.settings.items() if not over_encoders or path not in ENCODER}
        rows.setdefault(json.dumps(told, sort_keys=True), Repetitions([])).runs.append(run)
    for row in rows.values():
        for one, other in combinations(row.runs, 2):
            _independent(one, other)
    return list(rows.values())


def _comparable(one: Finished, other: Finished) -> None:
    versions = [f"{run.result['protocol']['name']} {run.result['protocol']['version']}" for run in (one, other)]
    if versions[0] != versions[1]:
        raise UserError(
            f"{one.name} was scored by protocol {versions[0]}, {other.name} by {versions[1]}. Run the older one again."
        )
    pictures = [run.result["protocol"]["fingerprints"]["val"] for run in (one, other)]
    if pictures[0] != pictures[1]:
        raise UserError(
            f"{one.name} and {other.name} were scored on different pictures (fingerprints {pictures[0]} and "
            f"{pictures[1]}), so their numbers cannot stand in one table. Report them apart."
        )


def _independent(one: Finished, other: Finished) -> None:
    if one.result["seeds"]["labels"] == other.result["seeds"]["labels"]:
        pictures = [run.result["protocol"]["fingerprints"]["train"] for run in (one, other)]
        if pictures[0] != pictures[1]:
            raise UserError(
                f"{one.name} and {other.name} say the same, but learnt from different pictures (fingerprints "
                f"{pictures[0]} and {pictures[1]}). Report them apart."
            )
    same_weights = one.settings[ENCODER[1]] == other.settings[ENCODER[1]]
    if one.result["seeds"] == other.result["seeds"] and same_weights:
        seeds = " and ".join(f"{name} {seed}" for name, seed in one.result["seeds"].items())
        raise UserError(
            f"{one.name} and {other.name} have equal settings and seeds ({seeds}): one run twice is no repetition. "
            "Give one of them another seed, or leave it out."
        )


def comparison(rows: Sequence[Repetitions]) -> Document:
    """The scores, and the settings in which rows differ."""
    shown = [name for name in SCORES if any(row.values(name) for row in rows)]
    head = ["", "runs", "seeds", *(HEADINGS.get(name, name) for name in shown), "CPU s"]
    cells = [
        [str(i), row.name, row.seeds, *(row.cell(name) for name in shown), row.cost] for i, row in enumerate(rows, 1)
    ]
    protocol, pictures = rows[0].runs[0].result["protocol"], rows[0].runs[0].result["pictures"]
    scored = (
        f"Protocol {protocol['name']} {protocol['version']}, {pictures:,} pictures ({protocol['fingerprints']['val']})."
    )
    parts: list[Part] = [Table(head, cells, left=2), Text(f"{NOTE} {scored}")]
    settings = [row.settings for row in rows]
    paths = dict.fromkeys(path for each in settings for path in each)
    # a value for each row, None where it has no such setting
    found = {path: [each.get(path) for each in settings] for path in paths}
    if apart := {path: values for path, values in found.items() if any(value != values[0] for value in values)}:
        lines = [[path, *map(in_words, values)] for path, values in apart.items()]
        numbers = [str(number) for number in range(1, len(rows) + 1)]
        parts += [Text("What sets them apart:"), Table(["", *numbers], lines)]
    return Document("", [*parts, _chart(rows, shown)], {"rows": [row.summary() for row in rows]})


def _chart(rows: Sequence[Repetitions], shown: Sequence[str]) -> Chart:
    """The scores in percent with their intervals, rows by their numbers; scores of one row stand side by side."""
    scores = [name for name in shown if name not in DIGITS]
    lines = []
    for i, name in enumerate(scores):
        having = [(number, row) for number, row in enumerate(rows) if row.values(name)]
        at = [number + 0.6 * ((i + 0.5) / len(scores) - 0.5) for number, _ in having]
        means = [statistics.mean(row.values(name)) for _, row in having]
        ends = [row.interval(name) or (None, None) for _, row in having]
        lines.append(Line(HEADINGS.get(name, name), at, means, *zip(*ends, strict=True)))
    names = [str(number) for number in range(1, len(rows) + 1)]
    return Chart("Scores", lines, "row of the table", "%", "dots", text="With their 95 % intervals.", names=names)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean, half = statistics.mean(values), student(values) if len(values) > 1 else None
    interval = None if half is None else [mean - half, mean + half]
    return {"mean": mean, "std": _deviation(values), "interval": interval, "values": list(values)}


def in_words(value: Any) -> str:
    """A value of a recipe, as a person writes it; `-` = there is none."""
    return "-" if value is None else json.dumps(value) if isinstance(value, (list, bool)) else str(value)
