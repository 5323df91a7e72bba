"""The files of a result of category discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlabeled.files import write_csv, write_text
from unlabeled.report import as_json, markdown
from unlabeled.text import spreadsheet
from unlabeled.train.engine import Engine
from unlabeled.transfer.result import result_of
from unlabeled.transfer.simgcd.report import page
from unlabeled.transfer.simgcd.score import Scorer

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "simgcd", "version": "1"}


def write_result(output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
    """Write `result.json`, `result.md` and `clusters.csv`; `told` is the recipe as JSON. Raises OSError."""
    assert scorer.latest is not None
    report = page(result_of(told, engine, scorer, scorer.latest, PROTOCOL))
    write_text(output / "result.json", as_json.write(report, compact=True))
    write_text(output / "result.md", markdown.write(report))
    names, source = [row["name"] for row in scorer.latest["clusters"]], scorer.source
    rows = zip(scorer.numbers.tolist(), scorer.clusters.tolist(), strict=True)
    found = ((source.key(i), names[k], source.classes[source.label(i)]) for i, k in rows)
    write_csv(output / "clusters.csv", ("picture", "cluster", "class"), ([*map(spreadsheet, row)] for row in found))
