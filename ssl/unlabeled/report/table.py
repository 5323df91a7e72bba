"""A table as Markdown, and numbers with their errors."""

from __future__ import annotations

from collections.abc import Sequence

from unlabeled.report.document import Table
from unlabeled.report.intervals import estimate, repeated
from unlabeled.report.markdown import table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The table alone, with its columns aligned."""
    return table(Table(head, rows, left))


__all__ = ["estimate", "markdown", "repeated"]
