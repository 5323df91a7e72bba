"""Reports as a piece of HTML for a notebook: texts, tables, the last image of each series, and charts drawn as SVG. It
needs no program and no file, and takes the notebook's own colours.

Galleries, maps and matrices are left to the page (`html`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from unlabeled.report import inline
from unlabeled.report.document import Document, Figure, Part, Table, Text
from unlabeled.report.markup import Markup, said
from unlabeled.report.visuals import Chart, Line, Slides

WIDTH, HEIGHT = 280, 150  # of a chart, pixels
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22  # between the frame and the edge
MOST = 140  # points of a line: one for each second pixel
LARGEST = 400_000  # characters of an image
COLOURS = ("#3987e5", "#d95926", "#199e70", "#9085e9", "#c98500", "#d55181")
STYLE = """
.ul-piece{font:13px/1.4 system-ui,sans-serif;max-width:960px}
.ul-piece h4{margin:.4em 0;font-size:15px}
.ul-piece dl{margin:.3em 0;display:flex;flex-wrap:wrap;gap:.2em 1.6em}
.ul-piece dt{opacity:.65;font-size:11px}
.ul-piece dd{margin:0}
.ul-piece table{border-collapse:collapse;margin:.4em 0;font-size:13px}
.ul-piece th,.ul-piece td{padding:.15em .7em;text-align:left;border-bottom:1px solid rgba(128,128,128,.35)}
.ul-piece .number{text-align:right;font-variant-numeric:tabular-nums}
.ul-piece .charts{display:flex;flex-wrap:wrap;gap:.6em 1em}
.ul-piece figure{margin:0}
.ul-piece figcaption{font-size:12px;margin-bottom:.2em}
.ul-piece i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 .7em}
.ul-piece svg text{font-size:10px;fill:currentColor;opacity:.75}
.ul-piece img{max-width:100%;max-height:360px;display:block}
"""


def write(document: Document, folder: Path) -> str:
    """A piece of HTML; images lie in `folder`, those that cannot be read are left out."""
    markup = Markup(document, folder)
    charts = [part for part in document.parts if isinstance(part, Chart)]
    body = "".join(_part(part, markup, folder) for part in document.parts)
    title = f"<h4>{said(document.title)}</h4>" if document.title else ""
    drawn = f'<div class="charts">{"".join(map(_chart, charts))}</div>' if charts else ""
    return f'<div class="ul-piece"><style>{STYLE}</style>{title}{body}{drawn}</div>'


def _part(part: Part, markup: Markup, folder: Path) -> str:
    if isinstance(part, Text | Table):
        return markup.part(part)
    if isinstance(part, Slides) and part.frames:
        return _image(folder, part.frames[-1].file, f"{part.title}, {part.frames[-1].name}")
    return _image(folder, part.file, part.text) if isinstance(part, Figure) else ""


def _image(folder: Path, file: str, text: str) -> str:
    uri = inline.image(folder, file)
    if uri is None or len(uri) > LARGEST:
        return ""
    return f'<figure><figcaption>{said(text)}</figcaption><img src="{uri}" alt="{said(text)}"></figure>'


def _chart(chart: Chart) -> str:
    """Lines or bars over one axis, with their names where there are several."""
    lines = [line for line in chart.lines if any(value is not None for value in line.y)]
    if not lines:
        return ""
    unit = f", {said(chart.y)}" if chart.y else ""
    names = "".join(f'<i style="background:{_colour(i)}"></i>{said(line.name)}' for i, line in enumerate(lines))
    head = f"{said(chart.title)}{unit}{names if len(lines) > 1 else ''}"
    size = (
        f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said(chart.title)}"'
    )
    body = "".join(_bars(chart, lines) if chart.kind == "bars" else _curves(chart, lines))
    return f"<figure><figcaption>{head}</figcaption><svg {size}>{body}</svg></figure>"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _curves(chart: Chart, lines: Sequence[Line]) -> Iterator[str]:
    values = [value for line in lines for value in line.y if value is not None]
    ticks = ticks_of(min(values), max(values))
    last = max(line.x[-1] for line in lines)
    first = min(line.x[0] for line in lines)
    yield from _axis(ticks)
    if first < last:
        yield f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:,g}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{said(chart.x)} {last:,g}</text>'
    for i, line in enumerate(lines):
        for run in _unbroken(line):
            points = [(_along(x, first, last), _up(y, ticks)) for x, y in run]
            if len(points) == 1:
                yield f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5" fill="{_colour(i)}"/>'
            else:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                yield f'<polyline points="{path}" fill="none" stroke="{_colour(i)}" stroke-width="1.5"/>'


def _bars(chart: Chart, lines: Sequence[Line]) -> Iterator[str]:
    """Groups of bars from 0, a group for each place."""
    values = [value for line in lines for value in line.y if value is not None]
    ticks, count = ticks_of(min(0.0, *values), max(0.0, *values)), max(len(line.y) for line in lines)
    yield from _axis(ticks)
    group = (WIDTH - LEFT - RIGHT) / count
    wide = 0.8 * group / len(lines)
    for i, line in enumerate(lines):
        for place, value in enumerate(line.y):
            if value is not None:
                x, (low, high) = LEFT + group * (place + 0.1) + wide * i, sorted((_up(0, ticks), _up(value, ticks)))
                tell = f"<title>{said(line.name)}: {value:.4g}</title>"
                place_ = f'x="{x:.1f}" y="{low:.1f}" width="{wide:.1f}" height="{high - low:.1f}"'
                yield f'<rect {place_} fill="{_colour(i)}">{tell}</rect>'
    for place, name in enumerate(chart.names):
        x = LEFT + group * (place + 0.5)
        yield f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{said(name)}</text>'


def _axis(ticks: Sequence[float]) -> Iterator[str]:
    for tick in ticks:
        y = _up(tick, ticks)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="rgba(128,128,128,.35)"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{tick:.4g}</text>'


def _along(x: float, first: float, last: float) -> float:
    share = (x - first) / (last - first) if last > first else 0.5
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _up(y: float, ticks: Sequence[float]) -> float:
    share = (y - ticks[0]) / (ticks[-1] - ticks[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def ticks_of(low: float, high: float) -> list[float]:
    """Three to six round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 2) + 1)]


def _unbroken(line: Line) -> Iterator[list[tuple[float, float]]]:
    """The parts of a line between gaps, thinned by means to `MOST` points in all."""
    width = -(-len(line.x) // MOST)
    run: list[tuple[float, float]] = []
    for i in range(0, len(line.x), width):
        values = [value for value in line.y[i : i + width] if value is not None]
        if values:
            run.append((line.x[min(i + width, len(line.x)) - 1], sum(values) / len(values)))
        elif run:
            yield run
            run = []
    if run:
        yield run
