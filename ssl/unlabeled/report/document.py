"""A report as data: title, texts, tables, figures and what only a page can show, and the same for programs.

A command returns a `Document`; a writer is a function from it to text, in a file of its own: `markdown`, `terminal`,
`as_json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from unlabeled.report.visuals import Tone, Visual


class Marked(NamedTuple):
    """A text that stands out.

    Attributes:
        text: the part to mark.
        tone: emphasis, or a severity.
        rest: follows, unmarked.
    """

    text: str
    tone: Tone = "strong"
    rest: str = ""


Cell = str | Marked


class Text(NamedTuple):
    """A paragraph, the heading of a section, an item of a list, or code: lines that keep their breaks and blanks.

    Names in it need no escaping: writers do that.
    """

    text: str
    kind: Literal["paragraph", "heading", "item", "code"] = "paragraph"


class Table(NamedTuple):
    """Rows below a head.

    Attributes:
        head: names of the columns; all empty = facts, see below. A line break may split a name on a terminal.
        rows: as many cells each.
        left: number of columns that are aligned to the left; the others hold numbers.
        title: above the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    title: str = ""

    @classmethod
    def facts(cls, lines: Iterable[tuple[Cell, str]]) -> Table:
        """Topics and what is known of each; an empty topic continues the line above."""
        return cls(("", ""), list(lines), left=2)


class Figure(NamedTuple):
    """A diagram in a file, relative to the report, and its description."""

    file: str
    text: str


Printed = Text | Table | Figure  # all writers have these
Part = Printed | Visual


class Document(NamedTuple):
    """A report.

    Attributes:
        title: its heading; '' = none.
        parts: in the order of reading.
        data: the same for programs, as JSON has it.
    """

    title: str
    parts: Sequence[Part]
    data: Mapping[str, Any] = {}
