"""A report with every part, for tests of pages: names in it try to be programs."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from unlabeled.report.document import Document, Figure, Marked, Table, Text
from unlabeled.report.visuals import (
    Band,
    Chart,
    Frame,
    Gallery,
    Line,
    Map,
    Mark,
    Matrix,
    Row,
    Sheet,
    Shown,
    Slides,
)

EVIL = "<script>window.evil = 1</script><!-- </script>\"'&\u2028\u202e<img src=x onerror='window.evil=2'>"
CLASSES = ("apple", "pear", "plum", EVIL)
SIDE, COLUMNS, IMAGES = 32, 8, 60


def every_part(folder: Path, points: int = IMAGES, steps: int = 200) -> Document:
    """The report; its files are written to `folder`."""
    images(folder, points)
    sheet = Sheet("sheet.jpg", SIDE, COLUMNS if points == IMAGES else 100, points)
    at = [10 * i for i in range(steps)]
    falling = [6 * math.exp(-i / steps * 4) + 0.3 * math.sin(i) / (1 + i / 20) for i in range(steps)]
    gaps: list[float | None] = [None if 50 < i < 60 else 0.1 + i / steps / 2 for i in range(steps)]
    marks = [Mark(400, "the rate was too high", "warning"), Mark(1200, EVIL, "stop"), Mark(1500, "resumed", "note")]
    names = [EVIL, *(f"class-{i % 4}/image-{i:05}.jpg" for i in range(1, points))]
    loss = Line("loss", at, falling, [y - 0.3 for y in falling], [y + 0.4 for y in falling])
    curves = [Line(name, at, [y + k / 3 for y in falling]) for k, name in enumerate(("mae", "dino", EVIL))]
    bars = Line("images", [0, 1, 2, 3], [40, 32, 18, 7])
    dots = Line("bins", [0.1, 0.3, 0.5, 0.9], [0.2, 0.25, 0.55, 0.8], [0.1, 0.2, None, 0.7], [0.3, 0.4, None, 0.9])
    query = [Shown(0, "query", "strong"), Shown(7, "0.98", "note"), Shown(59, "0.95", "stop"), Shown(12, EVIL)]
    colours: dict[str, list[str] | list[float]] = {
        "class": [CLASSES[i % 4] for i in range(points)],
        "cluster": [f"cluster {i % 37}" for i in range(points)],
        "uncertainty": [i / points for i in range(points)],
    }
    many = [[50 if i == j else (i * j) % 5 for j in range(40)] for i in range(40)]
    rows = [
        ("mae", "61.2 ± 0.3", "1,000"),
        ("dino", Marked("58.4", rest=" (2 s)"), "20,000"),
        (EVIL, Marked("9.1", "stop"), "300"),
    ]
    facts = [("mode", "full"), (Marked("1. warning", "warning"), "slow"), ("", "-> use workers"), (EVIL, EVIL)]
    parts = [
        Text("Pretraining: step 1,990 of 4,000, about 12 minutes left."),
        Table.facts([("state", "running"), ("loss", "0.412"), ("images/s", "1,240"), ("kNN", "61.2 %")]),
        Text("One warning so far."),
        Text("Curves", "heading"),
        Chart("loss", [loss], y="nats", marks=marks, text="What the method makes small."),
        Chart("effective rank", [Line("rank", at, gaps)], band=Band(0.2, 0.5, "as in runs that went well")),
        Chart("of several runs", curves),
        Chart("classes", [bars], x="class", kind="bars", names=CLASSES),
        Chart("calibration", [dots], x="confidence", y="accuracy", kind="dots"),
        Text("Images", "heading"),
        Slides("reconstructions", [Frame(f"step {i}", f"frame-{i}.png") for i in range(5)], "Above the image."),
        Slides("attention", [Frame("step 1", "missing.png"), Frame("step 2", "frame-1.png")]),
        Figure("frame-2.png", "a figure with its description"),
        Figure("missing.png", f"one that is not there {EVIL}"),
        Text("Neighbours", "heading"),
        Gallery(
            "nearest images",
            sheet,
            [Row("query apple", query), Row(EVIL, [Shown(i, f"image {i}") for i in range(10, 24)])],
            "By the cosine of their features.",
        ),
        Text("Map", "heading"),
        Map("map of the images", plane(points), names, sheet, colours, "PCA of the features."),
        Text("Classes", "heading"),
        Matrix("confusion", CLASSES, [[30, 2, 1, 0], [4, 25, 3, 0], [0, 1, 31, 2], [0, 0, 9, 20]]),
        Matrix("many classes", [f"class {i}" for i in range(40)], many),
        Text(f"Numbers {EVIL}", "heading"),
        Table(("run", "top-1, %", "images"), rows, title="scores"),
        Table.facts(facts),
        Text("one", "item"),
        Text(EVIL, "item"),
    ]
    return Document(f"every part {EVIL}", parts)


def plane(points: int) -> list[tuple[float, float]]:
    """Four clouds."""
    return [
        (3 * (i % 2) + math.sin(i * 1.7) * (i % 13) / 13, 3 * (i % 4 // 2) + math.cos(i * 2.3) * (i % 17) / 17)
        for i in range(points)
    ]


def images(folder: Path, points: int) -> None:
    """Frames of a series, and a sheet whose thumbnails differ in colour."""
    for i in range(5):
        image = Image.new("RGB", (240, 90), (40 * i, 90, 160))
        ImageDraw.Draw(image).ellipse((20 + 30 * i, 20, 70 + 30 * i, 70), fill=(250, 220, 90))
        image.save(folder / f"frame-{i}.png")
    columns = COLUMNS if points == IMAGES else 100
    sheet = Image.new("RGB", (columns * SIDE, -(-points // columns) * SIDE))
    draw = ImageDraw.Draw(sheet)
    for i in range(points):
        x, y = i % columns * SIDE, i // columns * SIDE
        draw.rectangle((x, y, x + SIDE, y + SIDE), fill=(i * 37 % 256, i * 91 % 256, i * 53 % 256))
        draw.ellipse((x + 6, y + 6, x + 26, y + 26), fill=(255 - i * 37 % 256, 120, i * 17 % 256))
    sheet.save(folder / "sheet.jpg", quality=90)
