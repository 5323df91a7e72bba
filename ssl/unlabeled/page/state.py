"""Where a run stands, in words; read from the ends of its files, so that a list of hundreds of runs is fast."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unlabeled.files import json_object
from unlabeled.page.lines import end, finite, last_lines, text, whole
from unlabeled.progress import duration
from unlabeled.report.visuals import Tone

Condition = Literal["waiting", "running", "silent", "ended", "stopped", "failed"]
TONES: dict[Condition, Tone] = {"silent": "warning", "stopped": "warning", "failed": "stop"}
LOGGED = 1 << 18  # bytes of the end of metrics.jsonl: the newest evaluation may lie far back
SILENT = 180.0  # seconds without a sign of life after which a run counts as killed
INTERVALS = 5  # the same, in intervals between logged lines
SIGNS = ("plan.json", "metrics.jsonl", "events.jsonl")  # the writer of the page touches the first as long as it lives
GO_ON = "The same command goes on from its newest checkpoint."
AGAIN = "(killed?)"


class State(NamedTuple):
    """A run at the moment.

    Attributes:
        name: of its recipe.
        kind: `pretrain` or `finetune`; '' = not known.
        trains: the method or the task; '' = not known.
        condition: what it does; `silent`: it should be running, but has given no sign of life for long.
        words: all that in a line.
        tone: of the words; None = plain.
        step: of the newest logged line.
        total: steps of the run; None = not known.
        left: seconds that it will take yet; None = it does not run, or not known.
        loss: the newest; None = there is none.
        scores: the newest evaluation, by name.
        modified: time of the last sign of life, seconds since 1970.
    """

    name: str
    kind: str
    trains: str
    condition: Condition
    words: str
    tone: Tone | None
    step: int
    total: int | None
    left: float | None
    loss: float | None
    scores: Mapping[str, float]
    modified: float


class Facts(NamedTuple):
    """What does not change while a run goes on.

    Attributes:
        name, kind, trains: see `State`.
        steps: of the whole run; None = not known.
        epochs: of the whole run; None = not known.
        started: when this part of the run was started, seconds since 1970; None = not known.
        first_step: of this part.
        page: whether the run touches `plan.json` as long as it lives.
    """

    name: str
    kind: str
    trains: str
    steps: int | None
    epochs: float | None
    started: float | None
    first_step: int
    page: bool


class Logged(NamedTuple):
    """The end of `metrics.jsonl`: its newest step, the last line of training and of an evaluation, and how many steps
    lie between two lines of training."""

    step: int
    training: Mapping[str, Any]
    scores: Mapping[str, float]
    every: int


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in ("recipe.yaml", "metrics.jsonl", "plan.json"))


def state(folder: Path, now: float | None = None) -> State:
    """Where the run in a folder stands; `now` in seconds since 1970, None = by the clock."""
    facts, logged = _facts(folder), _logged(folder)
    now = time.time() if now is None else now
    signs = [seconds for name in SIGNS if (seconds := _modified(folder / name)) is not None]
    event: Mapping[str, Any] = next(
        (e for e in reversed(end(folder / "events.jsonl")) if isinstance(e.get("state"), str)), {}
    )
    total = facts.steps or _total(facts.epochs, logged)
    pace = _pace(facts, logged, _modified(folder / "metrics.jsonl"))
    modified = max(signs, default=_modified(folder) or 0.0)
    patience = max(SILENT, 0.0 if facts.page or pace is None else INTERVALS * logged.every * pace)
    condition = _condition(folder, facts, logged, event, now - modified > patience)
    left = max(0, total - logged.step) * pace if condition == "running" and pace is not None and total else None
    words = _words(condition, facts, logged, event, total, left, now - modified)
    tone, loss = TONES.get(condition), finite(logged.training.get("loss"))
    named = facts.name, facts.kind, facts.trains
    return State(*named, condition, words, tone, logged.step, total, left, loss, logged.scores, modified)


def data(found: State) -> dict[str, Any]:
    """A state for programs."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in found._asdict().items()}


def _condition(folder: Path, facts: Facts, logged: Logged, event: Mapping[str, Any], silent: bool) -> Condition:
    for condition in ("ended", "stopped", "failed"):
        if event.get("state") == condition:
            return condition
    if facts.started is None:  # of a version without events
        return "ended" if (folder / "export").is_dir() or (folder / "result.json").is_file() else "silent"
    if silent:
        return "silent"
    return "running" if logged.step > facts.first_step else "waiting"


def _words(
    condition: Condition,
    facts: Facts,
    logged: Logged,
    event: Mapping[str, Any],
    total: int | None,
    left: float | None,
    age: float,
) -> str:
    step = f"step {logged.step:,}" + ("" if total is None else f" of {total:,}")
    said = str(event.get("text", ""))
    if condition in ("stopped", "failed"):
        return said or f"{condition} at {step}"
    if condition == "ended":
        part = "the last part " if facts.first_step else ""
        seconds = finite(event.get("seconds"))
        return f"ended after {logged.step:,} steps" + ("" if seconds is None else f", {part}in {duration(seconds)}")
    if condition == "silent":
        return f"no sign of life for {duration(age)}, since {step} {AGAIN}. {GO_ON}"
    if condition == "waiting":
        return "waiting for the first step" if not facts.first_step else f"resumed at step {facts.first_step:,}"
    share = f"{100 * logged.step / total:.0f} %" if total else ""
    ahead = "" if left is None else f"about {duration(left)} left"
    speed = finite(logged.training.get("images_per_s"))
    shown = "" if speed is None else f"{speed:,.0f} images/s"
    return "running: " + ", ".join(filter(None, [step, share, ahead, shown]))


def _facts(folder: Path) -> Facts:
    """From `plan.json`, and where it says nothing from lines of the recipe as runs write it."""
    plan, recipe = whole(folder / "plan.json"), text(folder / "recipe.yaml", 1 << 16)
    method, task = _said(recipe, "method", "name"), _said(recipe, "task", "name")
    kind = "pretrain" if method else "finetune" if task else ""
    steps, started, first = plan.get("steps"), finite(plan.get("started")), plan.get("first_step")
    return Facts(
        name=_said(recipe, "", "name") or folder.resolve().name,
        kind=kind,
        trains=method or task,
        steps=steps if isinstance(steps, int) and steps > 0 else None,
        epochs=finite(_said(recipe, "train", "epochs")),
        started=started,
        first_step=first if isinstance(first, int) else 0,
        page=_said(recipe, "run", "page") == "true",
    )


def _said(recipe: str, section: str, field: str) -> str:
    """The value of a field of a recipe in YAML, of a section or of none; '' where it is not there."""
    indent, above = ("  ", rf"^{section}:\n(?:[ ].*\n)*?") if section else ("", "^")
    found = re.search(rf"{above}{indent}{field}: (.*)$", recipe, re.MULTILINE)
    return found[1].strip().strip("\"'") if found else ""


def _logged(folder: Path) -> Logged:
    lines = last_lines(folder / "metrics.jsonl", LOGGED)
    training = list(islice(_newest(lines, training=True), 2))[::-1]
    evaluated: Mapping[str, Any] = next(_newest(lines, training=False), {})
    scores = {name: value for name in evaluated if name != "step" and (value := finite(evaluated[name])) is not None}
    steps = [line["step"] for line in training[-2:]]
    return Logged(
        step=max((line["step"] for line in (evaluated, *training) if line), default=0),
        training=training[-1] if training else {},
        scores=scores,
        every=steps[1] - steps[0] if len(steps) == 2 else 1,
    )


def _newest(lines: Sequence[bytes], training: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of training, or the others, from the end; only they are parsed."""
    for line in reversed(lines):
        if (b'"loss"' in line) is training and isinstance((found := json_object(line)).get("step"), int):
            yield found


def _pace(facts: Facts, logged: Logged, at: float | None) -> float | None:
    """Seconds per step of this part of the run, evaluations included, up to the newest line, written `at`."""
    steps = logged.step - facts.first_step
    if facts.started is None or at is None or steps <= 0 or at <= facts.started:
        return None
    return (at - facts.started) / steps


def _total(epochs: float | None, logged: Logged) -> int | None:
    """The steps of a run, from its epochs and those of the newest line of training."""
    done = finite(logged.training.get("epoch"))
    return round(epochs * logged.training["step"] / done) if epochs and done else None


def _modified(file: Path) -> float | None:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return None
