"""Stop a program by a signal without losing anything; the exit code says so.

In training the signal is noted: the step and the next one are finished and a checkpoint written. Elsewhere `Stopped` is
raised at once.
With several processes, where one may wait for another, it is raised at the next exchange (`raise_together`), except in
work that ends with an exchange (`alone`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from unlabeled.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_LOST = 69
"""Another process of the run has ended: what happened is said there (EX_UNAVAILABLE of sysexits.h)."""
EXIT_STOPPED = 75
"""Stopped by a signal or an `Interrupted` error: the same command resumes (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """Notes the first signal while entered, and raises it where the program may end; later signals are ignored. In
    another thread than the main one no signal is heard."""

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self.several = False  # whether other processes may wait for this one
        self.where = ""  # the place in the program, in words for the message
        self._may_end = self._alone = False
        self._process, self._depth = 0, 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._depth += 1
        if self._depth == 1:
            self.received, self.several, self.where = None, os.environ.get("WORLD_SIZE", "1") != "1", ""
            self._may_end, self._alone, self._process = False, False, os.getpid()
            # `nohup` ignores the end of a terminal, and so does the program then
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
            heard = [number for number in STOP_SIGNALS if number not in ignored] if is_main_thread() else []
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a child that has not yet set its own handler: only the main process acts
        if self.received is None:
            self.received = signal.Signals(number).name
            self.check()

    def check(self) -> None:
        """Raise Stopped if a signal came and the program may end here."""
        if self.asks and (self._alone or not self.several):
            raise Stopped(f"stopped by {self.received}{self.where}")

    @property
    def asks(self) -> bool:
        """Whether a signal came and the work may be interrupted."""
        return self.received is not None and self._may_end

    def later(self) -> AbstractContextManager[None]:
        """Context manager: a signal is only noted, the work is finished."""
        return self._within(may_end=False, alone=self._alone)

    def now(self) -> AbstractContextManager[None]:
        """Context manager: the program may end again."""
        return self._within(may_end=True, alone=self._alone)

    def alone(self) -> AbstractContextManager[None]:
        """Context manager: no process waits for this one until the next exchange, to which an error must be taken."""
        return self._within(may_end=self._may_end, alone=True)

    @contextmanager
    def _within(self, may_end: bool, alone: bool) -> Iterator[None]:
        before, (self._may_end, self._alone) = (self._may_end, self._alone), (may_end, alone)
        try:
            self.check()
            yield
        finally:
            self._may_end, self._alone = before

    def ignore(self) -> None:
        """Ignore signals to the end of the process: the exit code is known."""
        self._may_end = False
        self._before = dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN)


stop = StopRequest()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of signals that loaders set (`unlabeled.data.batch.workers`): for a program that is not
    ours. Does nothing outside the main thread, where they set none."""
    own = [getattr(signal, name) for name in ("SIGCHLD", "SIGALRM") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in own} if is_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not set by Python
                signal.signal(number, handler)


def is_main_thread() -> bool:
    """Whether this is the main thread, the only one that hears signals."""
    return threading.current_thread() is threading.main_thread()
