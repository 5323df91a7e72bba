"""What the nearest pictures tell of each: neighbours, near-duplicates, and labels that are likely wrong.

OUT/index.html       the pictures of the worst
OUT/neighbours.csv   every picture, its rank-th nearest, their classes and similarity
OUT/duplicates.csv   groups of near-duplicates
OUT/labels.csv       labels that the neighbours contradict, the likeliest first; only where there are labels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unlabeled.errors import UserError
from unlabeled.files import write_csv
from unlabeled.look.mapping import Described
from unlabeled.look.neighbours import Group, Neighbours, directions, duplicates, nearest
from unlabeled.report.document import Document, Part, Table, Text
from unlabeled.report.visuals import Gallery, Row, Sheet, Shown
from unlabeled.search.doubt import Doubt, doubtful
from unlabeled.text import spreadsheet

NEAR, COPIES, LABELS = "neighbours.csv", "duplicates.csv", "labels.csv"
NEAR_HEAD = ("picture", "split", "class", "rank", "neighbour", "neighbour_split", "neighbour_class", "similarity")
COPIES_HEAD = ("group", "picture", "split", "class", "similarity")
LABELS_HEAD = ("picture", "split", "class", "likely", "share_likely", "share_class")
MANY = 0.1  # share of the labels: so many are seldom wrong
SHOWN, MEMBERS, LISTED = 30, 8, 20  # rows of a gallery, pictures in one, rows of a table


class Survey(NamedTuple):
    """What neighbours tell of pictures [n] that were encoded.

    Attributes:
        images: names, classes and splits.
        near: the nearest of each.
        groups: near-duplicates, the closest first.
        doubts: labels that are likely wrong, the likeliest first.
        classes: names, by number.
    """

    images: Described
    near: Neighbours
    groups: list[Group]
    doubts: list[Doubt]
    classes: list[str]

    def about(self, number: int) -> tuple[str, str, str]:
        """Name, split and class of a picture."""
        split = self.images.splits[number] if self.images.splits else ""
        return self.images.names[number], split, self.images.classes[number]


def survey(images: Described, k: int, threshold: float) -> Survey:
    """Find the k nearest of every picture by cosine, after the mean of all features is taken off.

    Raises UserError when there are fewer than two pictures, or features are not finite.
    """
    if len(images.names) < 2:
        raise UserError(f"{len(images.names)} pictures can be used; expected at least 2")
    if not torch.isfinite(images.features).all():
        raise UserError("the features are not finite. Take an earlier checkpoint or export.")
    near = nearest(directions(images.features), k)
    classes = sorted({name for name in images.classes if name})
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number.get(name, -1) for name in images.classes])
    return Survey(images, near, duplicates(near, threshold), doubtful(near, labels), classes)


def write_tables(found: Survey, folder: Path) -> None:
    """Write the tables. Raises OSError."""
    write_csv(folder / NEAR, NEAR_HEAD, _safe(_nearest(found)))
    copies = (
        (group, *found.about(number), f"{one.cosine:.6f}")
        for group, one in enumerate(found.groups, start=1)
        for number in one.numbers
    )
    write_csv(folder / COPIES, COPIES_HEAD, _safe(copies))
    if found.classes:
        wrong = (
            (*found.about(one.number), found.classes[one.likely], f"{one.share:.4f}", f"{one.own:.4f}")
            for one in found.doubts
        )
        write_csv(folder / LABELS, LABELS_HEAD, _safe(wrong))


def _nearest(found: Survey) -> Iterator[Sequence[Any]]:
    for number in range(len(found.images.names)):
        own = found.about(number)
        pairs = zip(found.near.numbers[number].tolist(), found.near.cosines[number].tolist(), strict=True)
        for rank, (other, cosine) in enumerate(pairs, start=1):
            yield *own, rank, *found.about(other), f"{cosine:.6f}"


def _safe(rows: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
    return ([spreadsheet(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


def page(found: Survey, sheet: Sheet, facts: Sequence[tuple[str, str]]) -> Document:
    """The report: what was looked at, the likeliest wrong labels, the closest near-duplicates."""
    return Document("Neighbours", [Table.facts(facts), *_labels(found, sheet), *_copies(found, sheet)])


def _labels(found: Survey, sheet: Sheet) -> Iterator[Part]:
    if not found.classes:
        return
    yield Text("Labels that are likely wrong", "heading")
    if not found.doubts:
        yield Text("No picture has more neighbours of one other class than of its own.")
        return
    text = (
        f"{len(found.doubts):,} pictures have more neighbours of one other class than of their own. Each row of "
        f"the page begins with one; then its nearest neighbours with their cosine. All of them: {LABELS}. "
        f"Files are below {found.images.root or '/'}"
    )
    share = len(found.doubts) / sum(map(bool, found.images.classes))
    names, classes = found.images.short, found.classes
    rows = [
        Row(f"{names[one.number]}: {_words(found, one)}", _around(found, one.number)) for one in found.doubts[:SHOWN]
    ]
    yield Text(text)
    if share > MANY:
        doubt = "so many are seldom wrong. Either the encoder does not tell these classes apart, or one is far larger"
        yield Text(f"This is {100 * share:.0f} % of the labels, and {doubt} than the others.")
    yield Gallery("Labels that are likely wrong", sheet, rows)
    named = [
        (names[one.number], classes[one.label], classes[one.likely], f"{one.share:.2f}")
        for one in found.doubts[:LISTED]
    ]
    yield Table(("picture", "class", "likely", "share of\nneighbours"), named, left=3)


def _words(found: Survey, one: Doubt) -> str:
    return f"{found.classes[one.label]}, likely {found.classes[one.likely]} ({100 * one.share:.0f} % of its neighbours)"


def _around(found: Survey, number: int) -> list[Shown]:
    pairs = zip(found.near.numbers[number].tolist(), found.near.cosines[number].tolist(), strict=True)
    near = [Shown(other, f"{cosine:.3f} {found.images.classes[other]}".strip()) for other, cosine in pairs]
    return [Shown(number, found.images.classes[number], "strong"), *near[:MEMBERS]]


def _copies(found: Survey, sheet: Sheet) -> Iterator[Part]:
    yield Text("Near-duplicates", "heading")
    if not found.groups:
        yield Text("No two pictures are that close.")
        return
    several = sum(len({found.about(number)[1] for number in one.numbers}) > 1 for one in found.groups)
    across = f" {several:,} of them have pictures of several splits: a score of one of these says too much."
    text = f"{len(found.groups):,} groups.{across if several else ''} All of them: {COPIES}."
    names, rows = found.images.short, []
    for one in found.groups[:SHOWN]:
        shown = [Shown(number, f"{names[number]} {found.about(number)[1]}".strip()) for number in one.numbers[:MEMBERS]]
        rows.append(Row(f"{one.cosine:.3f}", shown))
    yield Text(text)
    yield Gallery("Near-duplicates", sheet, rows)
