"""The part of a run's page on a fine-tuning, from its `result.json` and the pictures in `look/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unlabeled.report import page
from unlabeled.report.document import Figure, Part, Table, Text
from unlabeled.report.visuals import Chart, Gallery, Line, Matrix, Row, Sheet, Shown, Tone
from unlabeled.transfer.detection import report as boxes
from unlabeled.transfer.segmentation import report as masks
from unlabeled.transfer.simgcd import report as simgcd

LOOK = "look"
MOST_CELLS = 30  # classes up to which the matrix is drawn by the page
MOST_NAMED = 200  # classes of the table
# of protocols that are not about one class of each image
OWN: dict[str, Callable[[dict[str, Any]], Iterator[Part]]] = {
    "detect": boxes.parts,
    "segment": masks.parts,
    "simgcd": simgcd.parts,
}
MISTAKES = 5  # classes that one is taken for, in a row

# whatever a file of another version, or a damaged one, makes of the reader
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def parts(folder: Path) -> list[Part]:
    """The scores, confusions and errors of the run in a folder; nothing where it has no result (yet)."""
    try:
        result = _json(folder / "result.json")
        return [] if result is None else list(_parts(folder, result))
    except UNREADABLE as error:
        return [Text("Result", "heading"), Text(f"result.json cannot be shown: {error!r}")]


def _json(file: Path) -> dict[str, Any] | None:
    """The content of a file; None where there is none. Raises ValueError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no object")
    return found


def _parts(folder: Path, result: dict[str, Any]) -> Iterator[Part]:
    yield Text("Scores", "heading")
    if (own := OWN.get(result["protocol"]["name"])) is not None:
        yield from own(result)
        return
    yield page.scores(result)
    yield Text("Errors", "heading")
    errors, where = _read(folder / LOOK / "errors.json", _errors), _read(folder / LOOK / "where.json", _where)
    yield from [*(part for part in errors if not isinstance(part, Table)), *where]
    yield from (part for part in errors if isinstance(part, Table))
    yield Text("Classes", "heading")
    yield from _classes(result)
    yield Text("Calibration", "heading")
    yield reliability(result)
    yield Text("Protocol and cost", "heading")
    yield page.circumstances(result)


def _read(file: Path, reader: Callable[[dict[str, Any]], Iterator[Part]]) -> list[Part]:
    """What a reader makes of a file; nothing where there is none, a sentence where it cannot be read."""
    try:
        found = _json(file)
        return [] if found is None else list(reader(found))
    except UNREADABLE as error:
        return [Text(f"{file.name} cannot be shown: {error!r}")]


# ---------------------------------------------------------------- errors and where it looks


def _errors(found: dict[str, Any]) -> Iterator[Part]:
    pictures = found["pictures"]
    if not found["worst"]:
        yield Text("No picture is taken for a wrong class.")
        return
    sheet = _sheet(found)
    worst = [Shown(place, _wrong(pictures[place]), "stop") for place in found["worst"]]
    text = "Wrong classes of the highest probability, the most confident first. A wrong label shows here as well."
    yield Gallery("Worst errors", sheet, [Row("", worst)], text)
    rows = [_confusion([(place, pictures[place]) for place in places]) for places in found["confused"] if places]
    if rows:
        text = "The classes of the lowest recall, the worst first, each with the class that it is mostly taken for."
        yield Gallery("Typical confusions", sheet, rows, text)
    lines = [_line(pictures[place]) for place in found["worst"]]
    yield Table(("file", "class", "taken for", "probability, %"), lines, left=3, title="Files of the worst errors")


def _sheet(found: dict[str, Any]) -> Sheet:
    sheet = Sheet(**found["sheet"])
    return sheet._replace(file=f"{LOOK}/{sheet.file}")


def _wrong(picture: dict[str, Any]) -> str:
    return f"{picture['true']}, taken for {picture['predicted']} ({_percent(picture)})"


def _percent(picture: dict[str, Any]) -> str:
    return f"{100 * picture['probability']:.0f} %"


def _line(picture: dict[str, Any]) -> tuple[str, ...]:
    return picture["file"], picture["true"], picture["predicted"], f"{100 * picture['probability']:.1f}"


def _confusion(places: Sequence[tuple[int, dict[str, Any]]]) -> Row:
    _, first = places[0]
    shown = [Shown(place, f"{_percent(picture)}", "stop") for place, picture in places]
    return Row(f"{first['true']}, taken for {first['predicted']}", shown)


def _where(found: dict[str, Any]) -> Iterator[Part]:
    """Three thumbnails of every picture: itself, the map of the predicted class and that of its own."""
    if found.get("failed"):
        yield Text(f"Where the model looks cannot be shown: {found['failed']}")
        return
    rows = []
    for number, picture in enumerate(found["pictures"]):
        first, right = 3 * number, picture["true"] == picture["predicted"]
        tone: Tone = "note" if right else "stop"
        words = f"{picture['true']}, rightly" if right else _wrong(picture)
        shown = [Shown(first, picture["file"]), Shown(first + 1, f"for {picture['predicted']}", tone)]
        rows.append(Row(words, shown if right else [*shown, Shown(first + 2, f"for {picture['true']}")]))
    yield Gallery("Where the model looks", _sheet(found), rows, found["text"])


# ---------------------------------------------------------------- classes


def _classes(result: dict[str, Any]) -> Iterator[Part]:
    names, counts = list(result["classes"].values()), result.get("confusion")
    if counts is None or len(names) > MOST_CELLS:
        yield Figure("confusion.png", "confusion matrix, rows the true class")
    else:
        yield Matrix("Confusion", names, counts)
    rows = sorted(_named(result, names), key=lambda row: float(row[2]))
    if len(rows) > MOST_NAMED:
        yield Text(f"The {MOST_NAMED} classes of the lowest recall, of {len(rows):,}.")
    head = ("class", "taken for", "recall, %", "precision, %", "pictures")
    yield Table(head, rows[:MOST_NAMED], left=2, title="What each class is taken for")


def _named(result: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each class that occurs: recall, precision, images, and the classes that it is mostly taken for."""
    for true, row in page.confusions(result).items():
        if (name := names[true]) not in result["per_class"]:
            continue
        wrong = sorted(((n, other) for other, n in row.items() if other != true), key=lambda pair: -pair[0])
        taken = ", ".join(f"{names[other]} {n:,}" for n, other in wrong[:MISTAKES])
        more = f" and {len(wrong) - MISTAKES} more" if len(wrong) > MISTAKES else ""
        shares = (result[measure][name] for measure in ("per_class", "precision"))
        yield name, taken + more, *(f"{share:.1f}" for share in shares), f"{sum(row.values()):,}"


def reliability(result: dict[str, Any]) -> Chart:
    """Accuracy beside confidence, in bins of the confidence."""
    bins = result["reliability"]
    width = 100 / len(bins["counts"])
    centres = [round((i + 0.5) * width, 2) for i in range(len(bins["counts"]))]
    lines = [
        Line(name, centres, [round(100 * y, 2) if n else None for y, n in zip(bins[name], bins["counts"], strict=True)])
        for name in ("accuracy", "confidence")
    ]
    least, most = min(n for n in bins["counts"] if n), max(bins["counts"])
    text = (
        f"Pictures in {len(centres)} bins by the probability of their predicted class: a calibrated model is right as "
        f"often as it is confident. Expected calibration error {result['ece']:.2f} %. A bin has {least:,} to {most:,} "
        "pictures; empty ones are left out."
    )
    return Chart("Reliability", lines, "confidence, %", "share of the bin that is right, %", "bars", text=text)
