"""What a search found: as a table, as JSON, and as a page with the pictures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.errors import BadSample, UserError
from unlabeled.files import write_text
from unlabeled.interface.held import Held
from unlabeled.launch.given import WHOLE, given, has_splits
from unlabeled.look.thumbnails import Thumbs, columns_for, side_for, thumbnail, write_sheet
from unlabeled.report import html
from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.visuals import Gallery, Row, Sheet, Shown
from unlabeled.search.index import Hit, Index
from unlabeled.stages import load_any

TITLE, SHEET = "Pictures that look alike", "pictures.jpg"


class Answer(NamedTuple):
    """What was asked: the file of a picture, or the number of one of the index; and what was found, nearest first."""

    query: str
    number: int | None
    hits: Sequence[Hit]


def answers(index: Index, like: Sequence[str], k: int, encoder: str | None = None) -> list[Answer]:
    """The k nearest of each picture: of a file, or of one of the index by its name, which itself is left out.

    Raises UserError when there is no such picture, or the encoder is another one.
    """
    places = {name: number for number, name in enumerate(index.names)}
    own = {name: places[name] for name in like if name in places}
    files = [name for name in like if name not in own]
    if missing := [name for name in files if not Path(name).is_file()]:
        raise UserError(f"{missing[0]} is no file, and no picture of {index.folder} has this name. Name another.")
    found = dict(zip(files, index.search(list(files), k, encoder), strict=True)) if files else {}
    for name, number in own.items():
        [hits] = index.search(index.features(number).unsqueeze(0), k + 1)
        found[name] = [hit for hit in hits if hit.number != number][:k]
    return [Answer(name, own.get(name), found[name]) for name in like]


def how(index: Index) -> str:
    """How was searched, in words."""
    everything = f"{len(index):,} pictures"
    if index.kind is None or not index.kind.cells:
        return f"{everything}, all compared (exact)"
    cells, probes, recall = index.kind
    return f"{everything}, {probes} of {cells:,} cells looked through: {100 * recall:.1f} % of the exact 10 nearest"


def table(found: Sequence[Answer], index: Index) -> Document:
    """The answers as a report, with classes where there are some."""
    head = ("picture", *["class"] * any(hit.label for one in found for hit in one.hits), "similarity")
    parts: list[Part] = [Text(how(index))]
    for one in found:
        rows = [(hit.name, *[hit.label] * (len(head) - 2), f"{hit.similarity:.4f}") for hit in one.hits]
        parts.append(Table(head, rows, len(head) - 1, f"like {one.query}"))
    return Document(TITLE, parts)


def as_json(found: Sequence[Answer], index: Index) -> str:
    """The answers for machines."""
    told: dict[str, Any] = {
        "index": str(index.folder),
        "pictures": len(index),
        "recall": 1.0 if index.kind is None else index.kind.recall,
        "answers": [
            {
                "like": one.query,
                "found": [{"picture": h.name, "similarity": h.similarity, "class": h.label or None} for h in one.hits],
            }
            for one in found
        ],
    }
    return json.dumps(told, indent=1)


def write_page(file: Path, found: Sequence[Answer], index: Index, encoder: str | None = None) -> None:
    """Write the answers with their pictures as one HTML file.

    Raises UserError when the pictures of the index are gone or have changed, or the file cannot be written.
    """
    source, thumbs, rows = pictures_of(index, encoder), list[Tensor](), list[Row]()
    side, channels = side_for(sum(1 + len(one.hits) for one in found)), index.model(encoder).encoder.channels
    for one in found:
        asked: tuple[Source, int] = (
            (Held([one.query], channels), 0) if one.number is None else (source, index.numbers[one.number])
        )
        words = [f"{hit.similarity:.3f} {hit.label}".strip() for hit in one.hits]
        shown = [Shown(len(thumbs) + 1 + place, text) for place, text in enumerate(words)]
        rows.append(Row(one.query, [Shown(len(thumbs), "like this", "strong"), *shown]))
        thumbs += [_small(*asked, side=side), *(_small(source, index.numbers[hit.number], side) for hit in one.hits)]
    sheet = Sheet(SHEET, side, columns_for(len(thumbs)), len(thumbs))
    parts = [Gallery(TITLE, sheet, rows, how(index)), *table(found, index).parts[1:]]
    with tempfile.TemporaryDirectory() as folder:
        write_sheet(Path(folder) / SHEET, Thumbs(torch.stack(thumbs), columns_for(len(thumbs))))
        page = html.write(Document(TITLE, parts), Path(folder))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page)


def pictures_of(index: Index, encoder: str | None = None) -> Source:
    """The pictures of an index, where `unlabeled embed` found them. Raises UserError when they are others now."""
    about = index.manifest
    what, split, changes = about["data"], about["split"], about.get("fields", ())
    named = {"train": split} if split and not has_splits(what, changes) else {}
    config = given(what, load_any, index.model(encoder).how, named, changes, WHOLE)
    source = Opened(config).split(split) if has_splits(what, changes) else Opened(config).train
    if source.fingerprint() != about["asked"]["pictures"]["fingerprint"]:
        raise UserError(f"the pictures at {what} are others than those of {index.folder}. Embed them again.")
    return source


def _small(source: Source, number: int, side: int) -> Tensor:
    """A thumbnail; grey where the picture cannot be read any more."""
    try:
        return thumbnail(source.image(number), side)
    except BadSample:
        return torch.full((3, side, side), 127, dtype=torch.uint8)
