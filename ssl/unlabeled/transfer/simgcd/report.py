"""The result of category discovery as a report: `result.json`, `result.md` and a part of the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.intervals import estimate
from unlabeled.report.page import circumstances

MOST = "cluster_largest"
GROUPS = {"all": "all pictures", "old": "pictures of known classes", "new": "pictures of new classes"}
PLAIN = {"nmi": "NMI, %", "ari": "ARI, %", "purity": "purity, %", MOST: "share of the largest cluster, %"}


def page(result: dict[str, Any]) -> Document:
    """Scores, clusters, protocol and cost, from the content of `result.json`."""
    return Document(f"{result['protocol']['name']}: accuracy {result['all']:.2f} %", list(parts(result)), result)


def parts(result: dict[str, Any]) -> Iterator[Part]:
    """The parts of the report."""
    yield Table(("score", "value"), list(_scores(result)))
    yield Text("Clusters", "heading")
    yield Table(("cluster", "matched class", "pictures", "of that class"), list(_clusters(result)))
    yield Text("Protocol and cost", "heading")
    yield circumstances(result)


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, words in GROUPS.items():
        value, interval = result[name], result["intervals"][name]
        text = "-" if value is None else estimate(value, interval=None if interval is None else tuple(interval))
        yield f"accuracy of {words}, % [95 %, bootstrap over pictures]", text
    for name, words in PLAIN.items():
        yield words, estimate(result[name])
    for name, words in GROUPS.items():
        yield words, f"{result['groups'][name]:,}"


def _clusters(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in result["clusters"]:
        yield row["name"], row["class"] or "-", f"{row['pictures']:,}", f"{row['right']:,}"
