"""`events.jsonl`: what a person should know of a run, beside its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from unlabeled.progress import Clock
from unlabeled.report.visuals import Tone
from unlabeled.train.tracking import cut_back

Ends = Literal["ended", "stopped", "failed"]


class Events:
    """One JSON object per event, appended: its step, tone and text; `state` where the run begins, goes on or ends.

    No number of the run depends on it: where it cannot be written, that is said once, and the run goes on.

    Args:
        file: to write to; None = other processes' events are written by the main one.
        say: prints a line.
        clock: of this part of the run.

    Attributes:
        heard: called after each event.
        state: of this part of the run, '' before it begins.
    """

    def __init__(self, file: Path | None, say: Callable[[str], None], clock: Clock) -> None:
        self.file, self.say, self.clock = file, say, clock
        self.heard: Callable[[], None] = lambda: None
        self.state = ""
        self._early: list[tuple[str, Tone, dict[str, Any]]] = []

    def begin(self, step: int) -> None:
        """Drop the events of later steps than `step`, of a run that was killed, and note what was said before."""
        if self.file is not None:
            self._try(lambda file: cut_back(file, step))
        self.state = "started"
        self._write(step, f"resumed at step {step:,}" if step else "started", "note", state="started")
        for text, tone, more in self._early:
            self._write(step, text, tone, **more)

    def add(self, step: int, text: str, tone: Tone = "warning", **more: Any) -> None:
        """Note an event of a step; `more` = further fields, such as the `image` that was skipped."""
        if self.state:
            self._write(step, text, tone, **more)
        else:
            self._early.append((text, tone, more))

    def end(self, step: int, text: str, how: Ends) -> None:
        """Note how this part of the run ended, once; a run that has not begun does not end."""
        if self.state != "started":
            return
        self.state = how
        tones: dict[Ends, Tone] = {"ended": "note", "stopped": "warning", "failed": "stop"}
        seconds = {"seconds": self.clock.seconds, "cpu_seconds": self.clock.cpu_seconds}
        self._write(step, text, tones[how], state=how, **seconds)

    def _write(self, step: int, text: str, tone: Tone, **more: Any) -> None:
        line = json.dumps({"step": step, "tone": tone, "text": text, **more})
        self._try(lambda file: _append(file, line))
        self.heard()

    def _try(self, action: Callable[[Path], None]) -> None:
        if self.file is None:
            return
        try:
            action(self.file)
        except OSError as error:
            self.say(f"{self.file} cannot be written: {error.strerror}. The run goes on without it.")
            self.file = None


def _append(file: Path, line: str) -> None:
    with open(file, "a", encoding="utf-8") as opened:
        opened.write(line + "\n")
