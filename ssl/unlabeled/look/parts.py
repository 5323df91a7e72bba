"""The views of a folder's `look/` as parts of a report. Reads files alone, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from unlabeled.files import json_object
from unlabeled.look.mapped import FILE, SHEET, Mapped
from unlabeled.report.document import Figure, Part, Table, Text
from unlabeled.report.visuals import Frame, Gallery, Map, Row, Sheet, Shown, Slides, Tone

FOLDER, ABOUT = "look", "about.json"
MOST_FRAMES = 12  # of one slider: every one is part of the page, 0.2 MB of 8 pictures
LISTED = 20  # rows of a table
MANY = 20  # pictures for each group of near-duplicates below which that is said
TITLES = {"attention": "Where it looks", "pca": "Principal components of the patches"}


def parts(folder: Path) -> list[Part]:
    """Attention, components, neighbours, the map, outliers and near-duplicates in the folder of a run or of `look`.

    A file that is missing is passed over; one that cannot be read becomes a sentence.
    """
    return [*_slides(folder), *_mapped(folder)]


def _slides(folder: Path) -> Iterator[Part]:
    try:
        about = json_object((folder / FOLDER / ABOUT).read_bytes())
    except OSError:
        about = {}
    for kind, title in TITLES.items():
        files = sorted((folder / FOLDER).glob(f"{kind}-step-*.png"), key=_step)
        frames = [Frame(f"step {_step(file):,}", f"{FOLDER}/{file.name}") for file in _thinned(files)]
        text = about.get(kind)
        told = text if isinstance(text, str) else ""
        alone = f"{FOLDER}/{kind}.png"  # of no run
        if frames or (folder / alone).exists():
            yield Text(title, "heading")
        if frames:
            yield Slides(title, frames, told)
        elif (folder / alone).exists():
            yield Figure(alone, title)
            yield from [Text(told)] if told else []


def _step(file: Path) -> int:
    found = re.search(r"-step-(\d+)\.png$", file.name)
    return int(found[1]) if found else 0


def _thinned(files: Sequence[Path]) -> list[Path]:
    """At most MOST_FRAMES of the files, evenly, the first and the last among them."""
    if len(files) <= MOST_FRAMES:
        return list(files)
    return [files[round(i * (len(files) - 1) / (MOST_FRAMES - 1))] for i in range(MOST_FRAMES)]


def _mapped(folder: Path) -> Iterator[Part]:
    file = folder / FOLDER / FILE
    try:
        found = Mapped.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValidationError, ValueError) as error:
        yield Text(f"{FOLDER}/{FILE} cannot be read: {type(error).__name__}. It is left out.")
        return
    size = found.thumbnails
    sheet = Sheet(f"{FOLDER}/{SHEET}", size.side, size.columns, len(found.names))
    yield from _neighbours(found, sheet)
    yield Text("Map of the pictures", "heading")
    at = "" if found.step is None else f" at step {found.step:,}"
    lost = f" {found.left_out:,} pictures cannot be used." if found.left_out else ""
    yield Map(
        "Map of the pictures",
        found.points,
        found.names,
        sheet,
        {**found.words, **found.numbers},
        f"{found.about}{at}; {found.plane}.{lost}{_below(found)}",
    )
    yield from _outliers(found, sheet)
    yield from _duplicates(found, sheet)


def _neighbours(found: Mapped, sheet: Sheet) -> Iterator[Part]:
    if not found.queries:
        return
    rows = []
    for query in found.queries:
        near = [Shown(place, f"{cosine:.3f}", _agrees(found, query.place, place)) for place, cosine in query.neighbours]
        rows.append(Row(_labelled(found, query.place), [Shown(query.place, "query", "strong"), *near]))
    text = "Each row begins with a query; then its nearest neighbours among the mapped pictures, with their cosine."
    if "class" in found.words:
        text += " Neighbours of another class have a frame."
    yield Text("Nearest neighbours", "heading")
    yield Gallery("Nearest neighbours", sheet, rows, text)


def _below(found: Mapped) -> str:
    return f" Files are below {found.root}" if found.root else ""


def _agrees(found: Mapped, query: int, place: int) -> Tone | None:
    classes = found.words.get("class")
    return "warning" if classes and classes[query] != classes[place] else None


def _labelled(found: Mapped, place: int) -> str:
    classes = found.words.get("class")
    return f"{found.names[place]} ({classes[place]})" if classes else found.names[place]


def _outliers(found: Mapped, sheet: Sheet) -> Iterator[Part]:
    if not found.outliers:
        return
    yield Text("Outliers", "heading")
    shown = [Shown(place, f"{distance:.2f}") for place, distance in found.outliers]
    text = "Pictures with the largest mean distance (1 - cosine) to their nearest neighbours, the farthest first."
    text += _below(found)
    yield Gallery("Outliers", sheet, [Row("", shown)], text)
    rows = [(found.names[place], f"{distance:.3f}") for place, distance in found.outliers[:LISTED]]
    yield Table(("outlier", "distance"), rows)


def _duplicates(found: Mapped, sheet: Sheet) -> Iterator[Part]:
    yield Text("Near-duplicates", "heading")
    if not found.duplicates:
        yield Text(f"No two pictures have a cosine of {found.threshold:g} or more.")
        return
    more = f" The closest {len(found.duplicates):,} groups are shown." if len(found.duplicates) < found.grouped else ""
    many = " That is many: an encoder that has learnt little takes different pictures for alike."
    text = f"{found.grouped:,} groups of pictures whose cosine is {found.threshold:g} or more.{more}{_below(found)}"
    text += many if MANY * found.grouped > len(found.names) else ""
    rows = [
        Row(f"{group.cosine:.3f}", [Shown(place, found.names[place]) for place in group.places])
        for group in found.duplicates
    ]
    yield Gallery("Near-duplicates", sheet, rows, text)
    pairs = [
        (found.names[group.places[0]], found.names[place], f"{group.cosine:.3f}")
        for group in found.duplicates
        for place in group.places[1:]
    ]
    yield Table(("picture", "near-duplicate", "cosine"), pairs[:LISTED], left=2)
