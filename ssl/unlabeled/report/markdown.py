"""Reports as Markdown."""

from __future__ import annotations

from itertools import pairwise

from unlabeled.report.document import Cell, Document, Figure, Part, Table, Text
from unlabeled.text import markdown

PREFIX = {"paragraph": "", "heading": "## ", "item": "- "}


def write(document: Document) -> str:
    """A whole report."""
    heading = [f"# {markdown(document.title)}\n\n"] if document.title else []
    gaps = [_gap(*pair) for pair in pairwise(document.parts)]
    return "".join([*heading, *(_part(part) + gap for part, gap in zip(document.parts, [*gaps, "\n"], strict=False))])


def table(shown: Table) -> str:
    """A table with its columns aligned."""
    lines = [[_cell(cell) for cell in row] for row in (shown.head, *shown.rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(shown.head))]
    rule = ["-" * width if i < shown.left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def aligned(line: list[str]) -> str:
        cells = zip(line, widths, strict=True)
        return " | ".join(
            cell.ljust(width) if i < shown.left else cell.rjust(width) for i, (cell, width) in enumerate(cells)
        )

    return "".join(f"| {aligned(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return PREFIX[part.kind] + markdown(part.text)
    if isinstance(part, Figure):
        return f"![{markdown(part.text)}]({part.file})"
    title = f"{markdown(part.title)}\n\n" if part.title else ""
    return title + table(part).rstrip("\n")


def _gap(part: Part, following: Part) -> str:
    if isinstance(part, Figure) and isinstance(following, Figure):
        return " "
    items = all(isinstance(one, Text) and one.kind == "item" for one in (part, following))
    return "\n" if items else "\n\n"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return markdown(cell.replace("\n", " "))
    return f"**{markdown(cell.text)}**{markdown(cell.rest)}"
