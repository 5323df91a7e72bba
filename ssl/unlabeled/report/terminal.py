"""Reports on a terminal: facts as aligned lines that wrap below themselves, tables with borders."""

from __future__ import annotations

import io
import textwrap

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text as RichText

from unlabeled.report.document import Cell, Document, Figure, Marked, Printed, Table, Text
from unlabeled.report.visuals import Visual
from unlabeled.text import one_line, plain

STYLES = {"strong": "bold", "stop": "bold red", "high": "bold red", "warning": "yellow", "note": "cyan"}
TOPIC = 10  # least width of the topics
NARROW = 20  # columns that a text gets at the least
COLUMNS = 6  # of a table; a wider one is turned
NO_WRAPPING = 1 << 16
ARROW = "-> "  # begins a text whose further lines are set in as far


def write(document: Document) -> str:
    """A report without colours and line breaks of its own, for logs and files."""
    console = Console(file=io.StringIO(), width=NO_WRAPPING, color_system=None)
    with console.capture() as captured:
        show(console, document)
    return captured.get()


def show(console: Console, document: Document) -> None:
    """Print a report, as wide as the console."""
    told = [part for part in document.parts if not isinstance(part, Visual)]
    parts = [*([Text(document.title, "heading")] if document.title else ()), *told]
    facts = [part for part in parts if isinstance(part, Table) and not any(part.head)]
    width = max([TOPIC, *(1 + len(_plain(row[0])) for table in facts for row in table.rows)])
    for i, part in enumerate(parts):
        if i and _needs_gap(parts[i - 1], part):
            console.print()
        _show(console, part, width)


def _show(console: Console, part: Printed, width: int) -> None:
    if isinstance(part, Table) and any(part.head):
        drawn = _bordered(part)
        if (
            len(part.head) > COLUMNS
            or Measurement.get(console, console.options.update_width(NO_WRAPPING), drawn).maximum <= console.width
        ):
            console.print(drawn)
        else:
            _in_lines(console, part)
    elif isinstance(part, Table):
        for topic, text in part.rows:
            head = RichText.assemble("  ", _styled(topic), " " * (width - len(_plain(topic)) + 1))
            _hanging(console, head, _plain(text))
    elif isinstance(part, Figure):
        console.print(RichText(one_line(f"{part.text}: {part.file}")), soft_wrap=True)
    elif part.kind == "code":
        console.print(RichText(plain(part.text.rstrip("\n"))), soft_wrap=True)
    else:
        text = one_line(f"- {part.text}" if part.kind == "item" else part.text)
        console.print(RichText(text, "bold" if part.kind == "heading" else ""), soft_wrap=True)


def _needs_gap(before: Printed, part: Printed) -> bool:
    """Whether an empty line separates two parts: not below a heading, and not within a list."""
    if not isinstance(before, Text):
        return True
    lists = before.kind == "item" and isinstance(part, Text) and part.kind == "item"
    below = before.kind == "heading" and not (isinstance(part, Text) and part.kind == "heading")
    return not (lists or below)


def _hanging(console: Console, head: RichText, text: str) -> None:
    """A text beside its head, wrapped under itself; paths stay whole, to be copied."""
    room, text = max(NARROW, console.width - len(head)), one_line(text)
    indent = " " * len(ARROW) if text.startswith(ARROW) else ""
    lines = textwrap.wrap(text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    first, *rest = lines or [""]
    console.print(RichText.assemble(head, first), soft_wrap=True)
    for line in rest:
        console.print(RichText(" " * len(head) + line), soft_wrap=True)


def _in_lines(console: Console, table: Table) -> None:
    """A table that does not fit: the name of each row on a line of its own, whole, to be copied; its cells below."""
    if table.title:
        console.print(RichText(one_line(table.title), "bold"), soft_wrap=True)
    for name, *cells in table.rows:
        console.print(_styled(name), soft_wrap=True)
        told = [
            RichText.assemble(head.replace("\n", " "), " ", _styled(cell))
            for head, cell in zip(table.head[1:], cells, strict=True)
            if _plain(cell)
        ]
        console.print(RichText("  ").append_text(RichText("   ").join(told)), soft_wrap=True)


def _bordered(table: Table) -> RichTable:
    """A table with borders; of many columns turned, so that its rows become columns."""
    drawn = RichTable(title=RichText(one_line(table.title)) if table.title else None)
    head, rows = list(table.head), [list(row) for row in table.rows]
    turned = len(head) > COLUMNS
    if turned:
        first, *rows = (list(line) for line in zip([name.replace("\n", " ") for name in head], *rows, strict=True))
        head = [_plain(cell) for cell in first]
    for i, name in enumerate(head):
        whole = (i > 0) != turned  # names of rows may be paths, which are folded
        to_left = i < (1 if turned else table.left)
        drawn.add_column(RichText(name), justify="left" if to_left else "right", overflow="fold", no_wrap=whole)
    for row in rows:
        drawn.add_row(*map(_styled, row))
    return drawn


def _styled(cell: Cell) -> RichText:
    if isinstance(cell, str):
        return RichText(one_line(cell))
    return RichText.assemble((one_line(cell.text), STYLES[cell.tone]), one_line(cell.rest))


def _plain(cell: Cell) -> str:
    return one_line(cell.text + cell.rest if isinstance(cell, Marked) else cell)
