"""Several runs side by side: their scores, what sets their recipes apart, and their curves over each other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlabeled.errors import UserError
from unlabeled.page.charts import charts
from unlabeled.page.curves import Curves
from unlabeled.page.measures import measure
from unlabeled.page.state import State, data, state
from unlabeled.recipe import flat, said
from unlabeled.report.document import Cell, Document, Marked, Part, Table, Text
from unlabeled.report.several import in_words

OWN = ("name", "run.output")  # fields that differ in any two runs


def document(
    folders: Sequence[Path], readers: Mapping[Path, Curves] | None = None, now: float | None = None
) -> Document:
    """The page of several runs.

    Args:
        folders: of the runs.
        readers: of their curves by folder, kept from page to page where runs go on; those that are missing are read.
        now: seconds since 1970; None = by the clock.
    """
    now = time.time() if now is None else now
    states = dict(zip(_names(folders), (state(folder, now) for folder in folders), strict=True))
    curves = {name: (readers or {}).get(folder) or Curves(folder) for name, folder in zip(states, folders, strict=True)}
    for each in curves.values():
        each.read()
    recipes = [_recipe(folder) for folder in folders]
    parts = [_scores(states, curves), *_apart(list(states), recipes), *charts(curves)]
    return Document(f"{len(folders)} runs", parts, {"runs": {name: data(found) for name, found in states.items()}})


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of folders; as many of the folders above as tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [f"{'/'.join(path[-1:])} ({number})" for number, path in enumerate(paths, 1)]


def _scores(states: Mapping[str, State], curves: Mapping[str, Curves]) -> Table:
    """Where each run stands; its loss, and its scores: the newest, and the best where that is another."""
    names = list(dict.fromkeys(name for each in curves.values() for name in each.scores))
    titles = [measure(name, score=True).title for name in names]
    rows: list[list[Cell]] = []
    for run, found in states.items():
        words: Cell = found.words if found.tone is None else Marked(found.words, found.tone)
        loss = "" if found.loss is None else f"{found.loss:.4g}"
        rows.append([run, words, loss, *(_score(curves[run], name) for name in names)])
    return Table(("run", "state", "loss", *titles), rows, left=2)


def _score(curves: Curves, name: str) -> str:
    if (curve := curves.scores.get(name)) is None:
        return ""
    newest, best = curve.last[1], curve.best[1]
    return f"{newest:.4g}" + (f" (highest {best:.4g})" if best > newest else "")


def _apart(names: Sequence[str], recipes: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """The fields of their recipes that differ."""
    paths = dict.fromkeys(path for each in recipes for path in each if path not in OWN)
    found = {path: [each.get(path) for each in recipes] for path in paths}
    rows = [[path, *map(in_words, values)] for path, values in found.items() if any(v != values[0] for v in values)]
    yield Text("What sets their recipes apart", "heading")
    if rows:
        yield Table(("field", *names), rows, left=1 + len(names))
    else:
        yield Text("Nothing: every field is the same, but for name and output.")


def _recipe(folder: Path) -> dict[str, Any]:
    """The fields of a run's recipe, by dotted path; none where it cannot be read."""
    try:
        return flat(said(folder / "recipe.yaml"))
    except UserError:
        return {}
