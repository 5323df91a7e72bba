"""Parts of a report as HTML, and the numbers from which programs draw the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatchmethod
from html import escape
from math import isfinite
from numbers import Real
from pathlib import Path

from unlabeled.report import inline
from unlabeled.report.document import Cell, Document, Figure, Marked, Part, Table, Text
from unlabeled.report.visuals import Chart, Gallery, Map, Matrix, Row, Sheet, Shown, Slides
from unlabeled.text import one_line, plain

SHORT = 28  # characters of facts that stand side by side
CLASSES = 30  # of a matrix that is a table; a larger one is an image
DIGITS = 6  # of a number
EXACT = 2**53  # whole numbers below are exact in a browser
SIDES = {Chart: "charts", Figure: "figures", Slides: "slides"}  # kinds that stand side by side


class Markup:
    """Writes parts as HTML.

    Args:
        document: that they are of.
        folder: that its files are relative to.

    Attributes:
        numbers: of charts, maps and large matrices, for programs.
    """

    def __init__(self, document: Document, folder: Path) -> None:
        self.folder = folder
        self.numbers: list[object] = []
        self.sheets: dict[str, int] = {}
        self.share = inline.SERIES // max(1, sum(isinstance(part, Slides) for part in document.parts))
        self.lead = False

    @staticmethod
    def group(part: Part) -> str:
        """The kind of parts that a part may stand beside; '' = any, below each other."""
        if isinstance(part, Text):
            return "items" if part.kind == "item" else ""
        return SIDES.get(type(part), "")

    def together(self, kind: str, parts: Sequence[Part], lead: bool) -> str:
        """Parts of one kind; `lead` = at the top of the page."""
        self.lead = lead
        body = "".join(self.part(part) for part in parts)
        if kind == "items":
            return f"<ul>{body}</ul>"
        return f'<div class="side side-{kind}">{body}</div>' if kind else body

    @singledispatchmethod
    def part(self, part: Part) -> str:
        """One part."""
        raise TypeError(part)

    @part.register
    def _(self, part: Text) -> str:
        tag = "li" if part.kind == "item" else "p"
        return f"<{tag}>{said(part.text)}</{tag}>"

    @part.register
    def _(self, part: Table) -> str:
        title = f"<h3>{said(part.title)}</h3>" if part.title else ""
        return title + (_table(part) if any(part.head) else _facts(part, self.lead))

    @part.register
    def _(self, part: Figure) -> str:
        return f"<figure>{self._image(part.file, part.text)}<figcaption>{said(part.text)}</figcaption></figure>"

    @part.register
    def _(self, part: Chart) -> str:
        low, high = (part.band.low, part.band.high) if part.band else (None, None)
        bounds = [f"from {low:g}" if low is not None else "", f"up to {high:g}" if high is not None else ""]
        band = f'<p class="band"><i></i>{" ".join(bounds)}: {said(part.band.text)}</p>' if part.band else ""
        marks = "".join(
            f'<li class="tone {mark.tone}">{said(part.x)} {number(mark.x) or 0:,}: {said(mark.text)}</li>'
            for mark in part.marks
        )
        many = f"<details><summary>{len(part.marks)} marks</summary><ul>{marks}</ul></details>"
        below = f"<ul>{marks}</ul>" if len(part.marks) < 3 else many
        return self._drawn("chart", part, f"{band}{below if marks else ''}", part.text)

    @part.register
    def _(self, part: Matrix) -> str:
        if len(part.names) > CLASSES:
            return self._drawn("matrix", part, "", _axes(part))
        return _matrix(part)

    @part.register
    def _(self, part: Slides) -> str:
        shown = inline.series(self.folder, part.frames, self.share)
        images = "".join(
            f'<div class="frame" data-name="{said(frame.name)}"{"" if i == len(shown) - 1 else " hidden"}>'
            f"{_img(uri, frame.file, f'{part.title}, {frame.name}')}</div>"
            for i, (frame, uri) in enumerate(shown)
        )
        some = f" {len(shown)} of {len(part.frames)} are here." if len(shown) < len(part.frames) else ""
        return _figure("slides", part.title, part.text + some, images)

    @part.register
    def _(self, part: Gallery) -> str:
        style, sheet = self._sheet(part.sheet)
        rows = "".join(_row(row, part.sheet, sheet) for row in part.rows)
        return style + _figure("gallery", part.title, part.text, f'<div class="rows">{rows}</div>')

    @part.register
    def _(self, part: Map) -> str:
        style, sheet = self._sheet(part.sheet)
        return style + self._drawn("map", part, "", part.text, f' data-sheet="{sheet}"')

    def _drawn(self, kind: str, part: Chart | Matrix | Map, below: str, text: str, more: str = "") -> str:
        """A part that a program draws."""
        self.numbers.append(jsonable(part))
        place = f' data-numbers="{len(self.numbers) - 1}"{more}'
        return _figure(kind, part.title, text, f'<div class="drawn"></div>{below}', place)

    def _image(self, file: str, text: str) -> str:
        return _img(inline.image(self.folder, file), file, text)

    def _sheet(self, sheet: Sheet) -> tuple[str, str]:
        """The style that has a sheet's image, once for each sheet, and its class; '' = it cannot be read."""
        if sheet.file in self.sheets:
            return "", f"sheet-{self.sheets[sheet.file]}"
        uri = inline.image(self.folder, sheet.file)
        if uri is None:
            return f'<p class="missing">{said(sheet.file)} cannot be read: no thumbnails.</p>', ""
        name = f"sheet-{self.sheets.setdefault(sheet.file, len(self.sheets))}"
        size = f"{100 * sheet.columns}% {100 * -(-sheet.images // sheet.columns)}%"
        return f"<style>.{name}{{background-image:url({uri});background-size:{size}}}</style>", name


def said(text: str) -> str:
    """Escape a text for HTML, also between quotes."""
    return escape(plain(text))


def number(value: float) -> int | float | None:
    """A number as JSON has it, rounded to `DIGITS` digits; whole ones stay exact, None = it is not finite."""
    found = float(value)
    if not isfinite(found):
        return None
    return int(value) if found.is_integer() and abs(found) < EXACT else float(f"{found:.{DIGITS}g}")


def jsonable(value: object) -> object:
    """Named tuples as dictionaries, numbers rounded, names on one line."""
    if type(value) is float:  # most values are, and the page of a long run has a hundred thousand
        return number(value)
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Real):
        return number(float(value))
    if isinstance(value, Mapping):
        return {one_line(str(key)): jsonable(one) for key, one in value.items()}
    if hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    return [jsonable(one) for one in value] if isinstance(value, Sequence) else None


def _figure(kind: str, title: str, text: str, body: str, more: str = "") -> str:
    """A part with its title and what explains it."""
    head = f"<figcaption><h3>{said(title)}</h3>{f'<p>{said(text)}</p>' if text else ''}</figcaption>"
    return f'<figure class="visual {kind}"{more} {_label(title)}>{head}{body}</figure>'


def _label(title: str, role: str = "group") -> str:
    return f'role="{role}" aria-label="{said(title)}"'


def _img(uri: str | None, file: str, text: str) -> str:
    if uri is None:
        return f'<p class="missing">{said(file)} cannot be read.</p>'
    return f'<img src="{uri}" alt="{said(text)}" decoding="async">'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return said(cell)
    tag = "strong" if cell.tone == "strong" else f'span class="tone {cell.tone}"'
    return f"<{tag}>{said(cell.text)}</{tag.split()[0]}>{said(cell.rest)}"


def _table(table: Table) -> str:
    sides = ["" if i < table.left else ' class="number"' for i in range(len(table.head))]
    head = "".join(f'<th scope="col"{side}>{said(name)}</th>' for name, side in zip(table.head, sides, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{side}>{_cell(cell)}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" {_label(table.title or "Table", "region")}><table class="data">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _facts(table: Table, lead: bool) -> str:
    """Topics and what is known; short ones at the top of the page side by side, in large letters."""
    texts = [cell.text + cell.rest if isinstance(cell, Marked) else cell for row in table.rows for cell in row]
    tiles = lead and all(len(text) <= SHORT for text in texts) and all(topic for topic, _ in table.rows)
    rows, topics = "", 0
    for topic, text in table.rows:
        head = f"<dt>{_cell(topic)}</dt>" if topic else ""
        opened = ("</div>" if topics else "") + "<div>" if topic or not topics else ""
        rows, topics = f"{rows}{opened}{head}<dd>{_cell(text)}</dd>", topics + 1
    return f'<dl class="{"tiles" if tiles else "facts"}">{rows}{"</div>" if topics else ""}</dl>'


def _matrix(part: Matrix) -> str:
    head = "".join(f'<th scope="col"><span>{said(name)}</span></th>' for name in part.names)
    rows = "".join(
        f'<tr><th scope="row">{said(name)}</th>{_counts(part, name, counts)}</tr>'
        for name, counts in zip(part.names, part.counts, strict=True)
    )
    body = (
        f'<div class="scroll" tabindex="0" {_label(part.title, "region")}><table class="heat">'
        f"<thead><tr><td></td>{head}"
        f'</tr></thead><tbody>{rows}</tbody></table></div><output class="told"></output>'
    )
    return _figure("matrix", part.title, _axes(part), body)


def _axes(part: Matrix) -> str:
    return f"rows: {part.rows}; columns: {part.columns}"


def _counts(part: Matrix, name: str, counts: Sequence[int]) -> str:
    total = max(1, sum(counts))
    cells = []
    for other, count in zip(part.names, counts, strict=True):
        told = f"{part.rows} {name}, {part.columns} {other}: {count:,} of {sum(counts):,} ({100 * count / total:.1f} %)"
        cells.append(f'<td style="--share:{count / total:.3g}" data-told="{said(told)}">{count or ""}</td>')
    return "".join(cells)


def _row(row: Row, sheet: Sheet, name: str) -> str:
    title = f"<h4>{said(row.title)}</h4>" if row.title else ""
    thumbs = "".join(_thumb(shown, sheet, name) for shown in row.shown)
    return f'<div class="row">{title}<ul class="thumbs">{thumbs}</ul></div>'


def _thumb(shown: Shown, sheet: Sheet, name: str) -> str:
    label = f'style="{position(sheet, shown.place)}" aria-label="Enlarge {said(shown.text)}"'
    button = f'<button type="button" class="thumb {name}" {label}></button>'
    return f'<li class="{shown.tone or "plain"}">{button}<span>{said(shown.text)}</span></li>'


def position(sheet: Sheet, place: int) -> str:
    """The style that shows one thumbnail of a sheet as a background of any size."""
    rows = -(-sheet.images // sheet.columns)
    row, column = divmod(place, sheet.columns)
    x, y = 100 * column / max(1, sheet.columns - 1), 100 * row / max(1, rows - 1)
    return f"background-position:{x:.4f}% {y:.4f}%"
