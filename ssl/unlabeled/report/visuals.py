"""Parts of a report that only a page can show: curves to zoom, images over time, galleries, a map of the images.

The writers of text leave them out. Files are relative to the report, as those of `Figure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Tone = Literal["strong", "stop", "high", "warning", "note"]


class Line(NamedTuple):
    """Values over an axis.

    Attributes:
        name: in the legend.
        x: ascending.
        y: as many values; None = a gap.
        low, high: as many, the smallest and largest of the values that a point stands for; empty = it stands for one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


class Mark(NamedTuple):
    """A place on the x axis, and what happened there in words."""

    x: float
    text: str
    tone: Tone = "warning"


class Band(NamedTuple):
    """The values between which a measure is healthy; None = no bound on that side. `text` says why."""

    low: float | None
    high: float | None
    text: str


class Chart(NamedTuple):
    """Lines, bars or dots over one axis.

    Attributes:
        title: the measure's name.
        lines: one for each run or series.
        x, y: names of the axes with their units; '' = none.
        kind: how lines are drawn.
        band: of healthy values.
        marks: on the x axis.
        text: explains the measure, below the title.
        names: of the places 0, 1, 2, ... on the x axis; empty = it has numbers.
    """

    title: str
    lines: Sequence[Line]
    x: str = "step"
    y: str = ""
    kind: Literal["lines", "bars", "dots"] = "lines"
    band: Band | None = None
    marks: Sequence[Mark] = ()
    text: str = ""
    names: Sequence[str] = ()


class Matrix(NamedTuple):
    """Counts [C, C] of pairs of classes, coloured by their share of the row; `rows` and `columns` name the axes."""

    title: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    rows: str = "true"
    columns: str = "predicted"


class Frame(NamedTuple):
    """An image of a series: its name, such as `step 100`, and its file."""

    name: str
    file: str


class Slides(NamedTuple):
    """Images of which one is shown at a time, chosen by a slider; the last one first. `text` explains them."""

    title: str
    frames: Sequence[Frame]
    text: str = ""


class Sheet(NamedTuple):
    """Thumbnails in one image file, row by row.

    Attributes:
        file: JPEG, PNG or WebP.
        side: of a square thumbnail, pixels.
        columns: thumbnails in a row.
        images: number of thumbnails.
    """

    file: str
    side: int
    columns: int
    images: int


class Shown(NamedTuple):
    """A thumbnail: its place in a sheet, and the text below it; `tone` = its frame, None = plain."""

    place: int
    text: str
    tone: Tone | None = None


class Row(NamedTuple):
    """Thumbnails in a row, below a title."""

    title: str
    shown: Sequence[Shown]


class Gallery(NamedTuple):
    """Rows of thumbnails of one sheet. `text` explains them."""

    title: str
    sheet: Sheet
    rows: Sequence[Row]
    text: str = ""


class Map(NamedTuple):
    """Images as points of a plane.

    Attributes:
        title: above it.
        points: (x, y) of each image.
        names: of its files.
        sheet: their thumbnails, in the same order.
        colours: by the name of a colouring, a word (class, cluster, split) or a number (uncertainty) of each image.
        text: how the plane was made.
    """

    title: str
    points: Sequence[tuple[float, float]]
    names: Sequence[str]
    sheet: Sheet
    colours: Mapping[str, Sequence[str] | Sequence[float]]
    text: str = ""


Visual = Chart | Matrix | Slides | Gallery | Map
