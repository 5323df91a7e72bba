"""Stopping a run politely: the step is finished, a checkpoint is written, the exit code says so."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
"""A signal stopped the run after a checkpoint: the same command goes on from there (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """While entered, the first SIGTERM, SIGUSR1 or Ctrl-C is noted; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
