"""The page of a run: a pure function of the files in its folder, so that old, running and killed runs have one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlabeled.look.parts import parts as look
from unlabeled.page import finetuned
from unlabeled.page.charts import charts
from unlabeled.page.curves import Curve, Curves
from unlabeled.page.lines import Growing, finite, text, whole
from unlabeled.page.measures import measure
from unlabeled.page.state import State, data, is_run, state
from unlabeled.progress import duration
from unlabeled.report.document import Cell, Document, Marked, Part, Table, Text
from unlabeled.report.visuals import Band, Frame, Mark, Slides, Tone

__all__ = ["Reader", "State", "data", "document", "is_run", "state"]

LOUD = ("stop", "high", "warning")
TIMES = ("seconds", "cpu_seconds")
MOST_EVENTS, MOST_MARKS, MOST_SKIPPED = 100, 20, 200
MOST_FRAMES, FRAME_BYTES = 16, 4 << 20  # of a series of images
DRAWN = "Reconstructions or crops, a column for each image, of one batch of training."


class Reader:
    """What was read of a run's folder; keep it, and the next page reads only what the run has written since."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.curves = folder, Curves(folder)
        self._events, self.events = Growing(folder / "events.jsonl"), list[dict[str, Any]]()
        self._skipped, self.skipped = Growing(folder / "bad_samples.jsonl"), list[tuple[str, str]]()
        self.skipped_in_all = 0

    def read(self) -> None:
        """Read what was appended."""
        self.curves.read()
        if self._events.replaced():
            self.events = []
        for block in self._events.read():
            self.events += [event for event in block if isinstance(event.get("text"), str)]
        if self._skipped.replaced():
            self.skipped, self.skipped_in_all = [], 0
        for block in self._skipped.read():
            found = [(str(line["key"]), str(line.get("reason", ""))) for line in block if "key" in line]
            self.skipped = (self.skipped + found)[:MOST_SKIPPED]
            self.skipped_in_all += len(found)


def document(folder: Path, reader: Reader | None = None, now: float | None = None) -> Document:
    """The page of the run in a folder.

    Args:
        folder: of the run.
        reader: of the same folder, kept from page to page where the run goes on; None = everything is read.
        now: seconds since 1970; None = by the clock.
    """
    reader = Reader(folder) if reader is None else reader
    reader.read()
    now = time.time() if now is None else now
    found, plan, curves = state(folder, now), whole(folder / "plan.json"), reader.curves
    parts: list[Part] = [
        Table.facts(standing(found, curves, now)),
        *_noticed(reader.events),
        *finetuned.parts(folder),
        *charts({"": curves}, _bands(plan), _marks(reader.events)),
        *drawn(folder),
        *look(folder),
        *_skipped(reader),
        *_made(folder, plan, reader.events),
    ]
    kind = f" ({found.kind})" if found.kind else ""
    return Document(f"{found.name}{kind}", parts, data(found))


def standing(found: State, curves: Curves, now: float) -> Iterator[tuple[Any, str]]:
    """Where the run stands, and its scores so far."""
    yield ("state" if found.tone is None else Marked("state", found.tone)), found.words
    yield "as of", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    for name, curve in curves.scores.items():
        yield measure(name, score=True).title, _score(curve)


def _score(curve: Curve) -> str:
    step, value = curve.last
    best = f"; highest {curve.best[1]:.4g} at step {curve.best[0]:,}" if curve.best[1] > value else ""
    first = f"; {curve.first[1]:.4g} at the start" if curve.first[0] == 0 < step else ""
    return f"{value:.4g} at step {step:,}{best}{first}"


def _noticed(events: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """What a person should know of, newest first."""
    if told := _told(events):
        yield Text("Warnings" if any(event.get("tone") in LOUD for event in told) else "Notes", "heading")
        rows: list[list[Cell]] = [[str(event.get("step", "")), Marked(_said(event), _tone(event))] for event in told]
        yield Table(("step", "what"), rows[: -MOST_EVENTS - 1 : -1], left=2)
        if len(rows) > MOST_EVENTS:
            yield Text(f"The newest {MOST_EVENTS} of {len(rows):,}; events.jsonl has them all.")


def _marks(events: Sequence[Mapping[str, Any]]) -> list[Mark]:
    told = [event for event in _told(events) if type(event.get("step")) is int]
    return [Mark(event["step"], _said(event), _tone(event)) for event in told[-MOST_MARKS:]]


def _told(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Events but for those that stand elsewhere: how parts of the run began and ended, and skipped images."""
    return [event for event in events if "state" not in event and "image" not in event]


def _tone(event: Mapping[str, Any]) -> Tone:
    return event["tone"] if event.get("tone") in LOUD else "note"


def _said(event: Mapping[str, Any]) -> str:
    return str(event["text"]).removeprefix("warning: ")


def _bands(plan: Mapping[str, Any]) -> dict[str, Band]:
    """Healthy values by the name of the measure, as `plan.json` says them."""
    bands = plan.get("bands")
    found = bands.items() if isinstance(bands, dict) else ()
    return {
        name: Band(finite(band.get("low")), finite(band.get("high")), str(band.get("text", "")))
        for name, band in found
        if isinstance(band, dict)
    }


def drawn(folder: Path) -> Iterator[Part]:
    """Reconstructions or crops over time."""
    if frames := _frames(folder, "pictures"):
        yield Text("What it sees and draws", "heading")
        yield Slides("Images over time", frames, DRAWN)


def _frames(folder: Path, under: str) -> list[Frame]:
    """`step-N.png` of a folder of the run: at most `MOST_FRAMES`, evenly spaced, the newest among them."""
    try:
        files = sorted(file for file in (folder / under).glob("step-*.png") if file.is_file())
        size = max((file.stat().st_size for file in files), default=0)
    except OSError:
        return []
    most = max(1, min(MOST_FRAMES, len(files), FRAME_BYTES // max(1, size)))
    chosen = sorted({round((len(files) - 1) * (i + 1) / most) for i in range(most)}) if files else []
    return [Frame(f"step {_step(files[i]):,}", f"{under}/{files[i].name}") for i in chosen]


def _step(file: Path) -> int:
    number = file.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def _skipped(reader: Reader) -> Iterator[Part]:
    count = reader.skipped_in_all
    if not count:
        return
    yield Text("Skipped images", "heading")
    shown = f"; the first {MOST_SKIPPED:,} are shown, bad_samples.jsonl has them all" if count > MOST_SKIPPED else ""
    yield Text(f"{count:,} images could not be used and were left out{shown}.")
    yield Table(("image", "why"), reader.skipped, left=2)


def _made(folder: Path, plan: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """How the run was made: course and cost, plan, versions, recipe."""
    yield from _history(events)
    for title, lines in (("Plan", plan.get("lines")), ("Versions", plan.get("versions"))):
        pairs = lines.items() if isinstance(lines, dict) else lines if isinstance(lines, list) else ()
        rows = [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
        if rows:
            yield Text(title, "heading")
            yield Table.facts(rows)
    if recipe := text(folder / "recipe.yaml"):
        yield Text("Recipe", "heading")
        yield Text(recipe, "code")


def _history(events: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """When the run was started, stopped and resumed, and what it took, as far as its parts ended in good order."""
    parts = [event for event in events if "state" in event]
    if not parts:
        return
    yield Text("Course and cost", "heading")
    rows = [[str(event.get("step", "")), _said(event), *(_took(event, name) for name in TIMES)] for event in parts]
    yield Table(("step", "what", "time", "CPU time"), rows[-MOST_EVENTS:], left=2)
    sums = [sum(finite(event.get(name)) or 0.0 for event in parts) for name in TIMES]
    if len([event for event in parts if event["state"] != "started"]) > 1:
        yield Text(f"All parts together: {duration(sums[0])}, {duration(sums[1])} of CPU time.")


def _took(event: Mapping[str, Any], name: str) -> str:
    seconds = finite(event.get(name))
    return "" if seconds is None else duration(seconds)
