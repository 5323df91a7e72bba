"""Several fine-tuned runs beside each other: those that differ in seeds alone become one mean with its error."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from unlabeled.errors import UserError
from unlabeled.launch.schema import is_free
from unlabeled.recipe import flat
from unlabeled.report.intervals import student
from unlabeled.report.table import estimate, markdown, repeated

SCORES = ("accuracy", "top5", "balanced_accuracy", "many", "medium", "few", "nll", "ece")
HEADINGS = {"balanced_accuracy": "balanced accuracy", "top5": "top-5", "nll": "NLL, nats", "ece": "ECE"}
DIGITS = {"nll": 4}
SEEDS, ENCODER = ("task.fraction_seed",), ("encoder", "encoder's weights")
SHOWN = 3  # names of runs in a cell
NOTE = (
    "Percent unless said; mean ± standard deviation over the runs [95 % interval: Student's t over the runs; of a "
    "single run, bootstrap over its pictures]. CPU seconds are those of one run."
)


class Run(NamedTuple):
    """A finished fine-tuning: where it lies, and its `result.json`."""

    name: str
    result: dict[str, Any]

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was trained and scored."""
        return self.result["protocol"]

    @property
    def seeds(self) -> dict[str, int]:
        """Of the run, and of the draw of its labels."""
        return self.result["seeds"]

    def score(self, name: str) -> float | None:
        """One of `SCORES`; None where it has no such score."""
        group = self.result["groups"].get(name)
        return self.result.get(name) if group is None else group["accuracy"]

    def settings(self) -> dict[str, Any]:
        """All that can change the result but the seeds, by dotted path."""
        sections = {name: self.protocol[name] for name in ("encoder", "task", "optim", "train", "watch", "data")}
        found = {path: value for path, value in flat(sections).items() if not is_free(path) and path not in SEEDS}
        counted, weights = self.protocol["labelled_pictures"], self.protocol["fingerprints"]["encoder"]
        return {**found, "labelled pictures": counted, "encoder's weights": weights}


class Row(NamedTuple):
    """Runs that are repetitions of each other."""

    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """Those that all of the runs share."""
        first, *others = (run.settings() for run in self.runs)
        return {path: value for path, value in first.items() if all(other.get(path) == value for other in others)}

    @property
    def name(self) -> str:
        """Names of the runs, the first few."""
        names = [run.name for run in self.runs]
        more = len(names) - SHOWN
        return ", ".join(names) if more <= 0 else f"{', '.join(names[:SHOWN])} and {more} more"

    def values(self, score: str) -> list[float]:
        """A score of every run that has it."""
        found = (run.score(score) for run in self.runs)
        return [value for value in found if value is not None]

    def cell(self, score: str) -> str:
        """A score with what is known of its error; the accuracy with its interval."""
        values, digits = self.values(score), DIGITS.get(score, 2)
        if not values:
            return "-"
        if score != "accuracy":
            return estimate(statistics.mean(values), _deviation(values), digits=digits)
        return repeated(values) if len(values) > 1 else estimate(values[0], interval=self.runs[0].result["interval"])

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        scores = {name: _summary(self.values(name)) for name in SCORES if self.values(name)}
        return {
            "runs": [run.name for run in self.runs],
            "seeds": [run.seeds for run in self.runs],
            "scores": scores,
            "bootstrap_intervals": [run.result["interval"] for run in self.runs],
            "cost": [run.result["cost"] for run in self.runs],
            "settings": self.settings,
            "fingerprints": [run.protocol["fingerprints"] for run in self.runs],
        }


def read(path: Path) -> Run:
    """A run by its folder or its `result.json`.

    Raises:
        UserError: there is no result.
    """
    file = path if path.is_file() else path / "result.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; expected the folder of a finished run of finetune.py, runs/NAME.")
    if not file.is_file():
        raise UserError(
            f"{path} has no result.json: expected the folder of a finished run of finetune.py. Finish it: the same "
            "command goes on."
        )
    try:
        run = Run(str(path), json.loads(file.read_text(encoding="utf-8")))
        run.settings(), run.seeds, run.result["interval"], run.result["groups"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is no result of finetune.py: {error}") from error
    return run


def grouped(runs: Sequence[Run], over_encoders: bool = False) -> list[Row]:
    """Repetitions together, in the order in which their first runs come.

    Args:
        runs: at least one.
        over_encoders: whether runs that began from different weights, such as pretrained with other seeds, are
            repetitions too.

    Raises:
        UserError: results cannot be compared, or a run is no repetition but the same once more.
    """
    for run in runs[1:]:
        _comparable(runs[0], run)
    rows: dict[str, Row] = {}
    for run in runs:
        told = {path: value for path, value in run.settings().items() if not over_encoders or path not in ENCODER}
        rows.setdefault(json.dumps(told, sort_keys=True), Row([])).runs.append(run)
    for row in rows.values():
        for one, other in combinations(row.runs, 2):
            _independent(one, other)
    return list(rows.values())


def _comparable(one: Run, other: Run) -> None:
    versions = [f"{run.protocol['name']} {run.protocol['version']}" for run in (one, other)]
    if versions[0] != versions[1]:
        raise UserError(
            f"{one.name} was scored by protocol {versions[0]}, {other.name} by {versions[1]}. Run the older one again."
        )
    pictures = [run.protocol["fingerprints"]["val"] for run in (one, other)]
    if pictures[0] != pictures[1]:
        raise UserError(
            f"{one.name} and {other.name} were scored on different pictures (fingerprints {pictures[0]} and "
            f"{pictures[1]}), so their numbers cannot stand in one table. Report them apart."
        )


def _independent(one: Run, other: Run) -> None:
    if one.seeds["labels"] == other.seeds["labels"]:
        pictures = [run.protocol["fingerprints"]["train"] for run in (one, other)]
        if pictures[0] != pictures[1]:
            raise UserError(
                f"{one.name} and {other.name} say the same, but learnt from different pictures (fingerprints "
                f"{pictures[0]} and {pictures[1]}). Report them apart."
            )
    same_weights = one.settings()[ENCODER[1]] == other.settings()[ENCODER[1]]
    if one.seeds == other.seeds and same_weights:
        seeds = " and ".join(f"{name} {seed}" for name, seed in one.seeds.items())
        raise UserError(
            f"{one.name} and {other.name} have equal settings and seeds ({seeds}): one run twice is no repetition. "
            "Give one of them another seed, or leave it out."
        )


def document(rows: Sequence[Row]) -> str:
    """Markdown: the scores, and the settings that set rows apart."""
    shown = [name for name in SCORES if any(row.values(name) for row in rows)]
    head = ["", "runs", "seeds", *(HEADINGS.get(name, name) for name in shown), "CPU s"]
    cells = [
        [str(number), row.name, _seeds(row), *(row.cell(name) for name in shown), _cost(row)]
        for number, row in enumerate(rows, 1)
    ]
    protocol, pictures = rows[0].runs[0].protocol, rows[0].runs[0].result["pictures"]
    scored = (
        f"Protocol {protocol['name']} {protocol['version']}, {pictures:,} pictures ({protocol['fingerprints']['val']})."
    )
    parts = [markdown(head, cells, left=2), f"{NOTE} {scored}\n"]
    apart = differences(rows)
    if apart:
        lines = [[path, *(_shown(value) for value in values)] for path, values in apart.items()]
        numbers = [str(number) for number in range(1, len(rows) + 1)]
        parts.append(f"What sets them apart:\n\n{markdown(['', *numbers], lines)}")
    return "\n".join(parts)


def differences(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Settings that are not the same in all rows: a value for each row, None where it has no such setting."""
    settings = [row.settings for row in rows]
    paths = dict.fromkeys(path for each in settings for path in each)
    found = {path: [each.get(path) for each in settings] for path in paths}
    return {path: values for path, values in found.items() if any(value != values[0] for value in values)}


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean = statistics.mean(values)
    half = student(values) if len(values) > 1 else None
    interval = None if half is None else [mean - half, mean + half]
    return {"mean": mean, "std": _deviation(values), "interval": interval, "values": list(values)}


def _seeds(row: Row) -> str:
    """`0, 1, 2`, the labels' behind a slash where they are others."""
    pairs = [(run.seeds["run"], run.seeds["labels"]) for run in row.runs]
    return ", ".join(f"{run}" if run == labels else f"{run}/{labels}" for run, labels in pairs)


def _cost(row: Row) -> str:
    return f"{statistics.mean(run.result['cost']['cpu_s'] for run in row.runs):,.0f}"


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value) if isinstance(value, (list, bool)) else str(value)
