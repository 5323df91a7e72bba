"""Reports as Markdown."""

from __future__ import annotations

from unlabeled.report.document import Cell, Document, Figure, Printed, Table, Text
from unlabeled.report.visuals import Visual
from unlabeled.text import code_block, markdown

PREFIX = {"paragraph": "", "heading": "## ", "item": "- "}


def write(document: Document) -> str:
    """A whole report."""
    text = f"# {markdown(document.title)}\n\n" if document.title else ""
    parts = [part for part in document.parts if not isinstance(part, Visual)]
    for part, following in zip(parts, [*parts[1:], None], strict=False):
        text += _part(part)
        if isinstance(part, Figure) and isinstance(following, Figure):
            text += " "
        else:
            items = all(isinstance(one, Text) and one.kind == "item" for one in (part, following))
            text += "\n" if items or following is None else "\n\n"
    return text


def table(shown: Table) -> str:
    """A table with its columns aligned."""
    lines = [[_cell(cell) for cell in row] for row in (shown.head, *shown.rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(shown.head))]
    rule = ["-" * width if i < shown.left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def aligned(line: list[str]) -> str:
        cells = enumerate(zip(line, widths, strict=True))
        return " | ".join(f"{cell:{'<' if i < shown.left else '>'}{width}}" for i, (cell, width) in cells)

    return "".join(f"| {aligned(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _part(part: Printed) -> str:
    if isinstance(part, Text) and part.kind == "code":
        return code_block(part.text)
    if isinstance(part, Text):
        return PREFIX[part.kind] + markdown(part.text)
    if isinstance(part, Figure):
        return f"![{markdown(part.text)}]({part.file})"
    title = f"{markdown(part.title)}\n\n" if part.title else ""
    return title + table(part).rstrip("\n")


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return markdown(cell.replace("\n", " "))
    return f"**{markdown(cell.text)}**{markdown(cell.rest)}"
