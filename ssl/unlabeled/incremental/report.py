"""The result of an incremental run: curve, forgetting, accuracy on every task after every task, bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.incremental.measures import Measures, measures
from unlabeled.report.document import Document, Figure, Part, Table, Text
from unlabeled.report.plots import figure_of, write_figure
from unlabeled.report.visuals import Chart, Line

Results = Sequence[Mapping[str, Any]]
MEANING = (
    "Accuracy in percent on all test pictures of the classes seen so far, after each task. Average is the mean over "
    "tasks, the first included. Forgetting is the mean over earlier tasks of the best accuracy ever minus the last. "
    "Backward transfer is the mean over them of the last accuracy minus that when the task was learnt."
)
BOUNDS = {"joint": "all classes at once", "finetune": "plain fine-tuning"}


def matrix_of(results: Results) -> np.ndarray:
    """Accuracy [T, T] on task j after task t, 0 above the diagonal."""
    matrix = np.zeros((len(results), len(results)))
    for row, result in enumerate(results):
        matrix[row, : row + 1] = result["accuracy"]
    return matrix


def measured(results: Results) -> Measures:
    """The measures of a run."""
    return measures(matrix_of(results), results[-1]["pictures"])


def document(told: Mapping[str, Any], memory: str, runs: Mapping[str, Results]) -> Document:
    """The report of a run; `told` is its recipe as JSON, `runs` has its results at "" and those of its bounds."""
    own, found = runs[""], {name: measured(results) for name, results in runs.items()}
    strategy = told["tasks"]["strategy"]["name"]
    content = {
        "protocol": {
            "name": "incremental",
            "version": "1",
            **{n: told[n] for n in ("encoder", "tasks", "task", "train")},
        },
        "memory": memory,
        "seed": told["seed"],
        "measures": {name or strategy: one._asdict() for name, one in found.items()},
        "accuracy": matrix_of(own).tolist(),
        "tasks": list(own),
        "cost": {name or strategy: {"cpu_s": sum(one["cpu_s"] for one in results)} for name, results in runs.items()},
    }
    rows = [
        [BOUNDS.get(name, strategy), *map(_percent, (one.average, one.last, one.forgetting, one.backward_transfer))]
        for name, one in found.items()
    ]
    head = ("", "average", "last", "forgetting", "backward transfer")
    names = [f"{n + 1}: {len(one['classes'])} classes" for n, one in enumerate(own)]
    after = [[names[n], *(_percent(value) for value in one["accuracy"])] for n, one in enumerate(own)]
    each = Table(("after task", *(str(n + 1) for n in range(len(own)))), _even(after), title="On the classes of task")
    title = f"{told['name']}: {strategy}, {len(own)} tasks, {memory}"
    parts: list[Part] = [
        Text(MEANING),
        Table(head, rows),
        *charts(strategy, found),
        each,
        Figure("curve.png", "Accuracy"),
        Figure("matrix.png", "Accuracy of each task"),
    ]
    return Document(title, parts, content)


def charts(strategy: str, found: Mapping[str, Measures]) -> list[Chart]:
    """The curve of accuracy over tasks; the joint bound is a point at the end."""
    lines = [Line(BOUNDS.get(name, strategy), *_curve(name, one, len(found[""].seen))) for name, one in found.items()]
    return [Chart("Accuracy on the classes seen", lines, "task", "%", names=())]


def _curve(name: str, one: Measures, tasks: int) -> tuple[list[float], list[float]]:
    return ([float(tasks)], [one.last]) if name == "joint" else ([float(n + 1) for n in range(len(one.seen))], one.seen)


def draw(folder: Path, title: str, strategy: str, runs: Mapping[str, Results]) -> None:
    """Write `curve.png` and `matrix.png`. Raises OSError."""
    found = {name: measured(results) for name, results in runs.items()}
    figure = figure_of(7, 4.2)
    axes = figure.add_subplot()
    for name, one in found.items():
        x, y = _curve(name, one, len(found[""].seen))
        axes.plot(
            x,
            y,
            marker="o" if name != "joint" else "*",
            label=BOUNDS.get(name, strategy),
            markersize=9 if name == "joint" else 5,
        )
    axes.set(xlabel="task", ylabel="accuracy on the classes seen, %", title=title, ylim=(0, 100))
    axes.set_xticks(range(1, len(found[""].seen) + 1))
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(figure, folder / "curve.png")
    _draw_matrix(folder / "matrix.png", matrix_of(runs[""]), title)


def _draw_matrix(file: Path, matrix: np.ndarray, title: str) -> None:
    tasks = len(matrix)
    figure = figure_of(min(12, 2.5 + 0.6 * tasks), min(11, 2 + 0.55 * tasks))
    axes = figure.add_subplot()
    shown = np.ma.array(matrix, mask=np.triu(np.ones_like(matrix), 1) > 0)
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=100)
    for row, column in zip(*np.tril_indices(tasks), strict=True):
        value = matrix[row, column]
        colour = "white" if value > 55 else "black"
        size = 9 if tasks <= 12 else 6
        axes.text(int(column), int(row), f"{value:.0f}", ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(tasks), [str(n + 1) for n in range(tasks)])
    axes.set_yticks(range(tasks), [str(n + 1) for n in range(tasks)])
    axes.set(xlabel="on the classes of task", ylabel="after task", title=title)
    write_figure(figure, file)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _even(rows: Sequence[list[str]]) -> list[list[str]]:
    """Rows of one length: what was not learnt yet is empty."""
    width = max(map(len, rows))
    return [[*row, *[""] * (width - len(row))] for row in rows]
