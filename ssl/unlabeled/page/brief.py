"""A run in short, for a notebook: where it stands, its scores, its loss over time, and what it drew last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from unlabeled.page import finetuned
from unlabeled.page.charts import charts
from unlabeled.page.curves import Curves
from unlabeled.page.run import drawn, standing
from unlabeled.page.state import data, state
from unlabeled.page.writing import NAME
from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.visuals import Chart

LOSS = "loss"


def brief(folder: Path) -> Document:
    """The run in a folder, in short; the whole is `unlabeled.page.run`."""
    (curves := Curves(folder)).read()
    now = time.time()
    found = state(folder, now)
    kind = f" ({found.kind})" if found.kind else ""
    facts = [*standing(found, curves, now), ("export", str(folder / "export")), ("page", str(folder / NAME))]
    parts = [Table.facts(facts), *_scores(folder), *_charts(curves), *drawn(folder)]
    return Document(f"{found.name}{kind}", [part for part in parts if not isinstance(part, Text)], data(found))


def _scores(folder: Path) -> Iterator[Part]:
    """The first table of a fine-tuning, its scores."""
    yield from [part for part in finetuned.parts(folder) if isinstance(part, Table)][:1]


def _charts(curves: Curves) -> Iterator[Part]:
    """The loss and every score that was taken more than once, over time."""
    curves.scores = {name: curve for name, curve in curves.scores.items() if curve.readings > 1}
    curves.training = {name: curve for name, curve in curves.training.items() if name == LOSS}
    yield from (part for part in charts({"": curves}) if isinstance(part, Chart))
