"""Stopping a program politely, wherever it stands: nothing is lost, and the exit code says so.

A signal means one of two things. While a run trains, it is noted: the step is finished, a checkpoint is written.
Anywhere else `Stopped` is raised where the program stands. With several processes, where one may wait for another, that
is put off to the next time they meet (`raise_together`), except in work that ends with such a meeting (`alone`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from unlabeled.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
"""Stopped by a signal, or for what is not the recipe's fault: the same command goes on (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """While entered, the first signal is noted, and raised where the program may end; all later ones are ignored.

    Attributes:
        received: name of the signal, None before it.
        several: whether other processes may wait for this one.
        where: the program is, in words.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.several, self.where = False, ""
        self._may_end = self._alone = False
        self._process, self._depth = 0, 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._depth += 1
        if self._depth == 1:
            self.received, self.several, self.where = None, os.environ.get("WORLD_SIZE", "1") != "1", ""
            self._may_end, self._alone, self._process = False, False, os.getpid()
            self._before = {
                number: signal.signal(number, self._hear) for number in STOP_SIGNALS if _may_be_heard(number)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Raise Stopped if a signal came, and the program may end here."""
        if self.asks and (self._alone or not self.several):
            raise Stopped(f"stopped by {self.received}{self.where}")

    @property
    def asks(self) -> bool:
        """Whether a signal came, and the work in hand may be left."""
        return self.received is not None and self._may_end

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within, a signal is only noted: what is begun is finished."""
        before, self._may_end = self._may_end, False
        try:
            yield
        finally:
            self._may_end = before

    @contextmanager
    def now(self) -> Iterator[None]:
        """Within, the program may end again."""
        before, self._may_end = self._may_end, True
        try:
            self.check()
            yield
        finally:
            self._may_end = before

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, nobody waits for this process until they meet: whoever leaves it by an error must tell the others."""
        before, self._alone = self._alone, True
        try:
            self.check()
            yield
        finally:
            self._alone = before

    def ignore(self) -> None:
        """From now to the end of the process, signals do nothing: the exit code is known."""
        self._may_end = False
        self._before = dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN)


def _may_be_heard(number: signal.Signals) -> bool:
    """Whether a signal means anything: `nohup` says that the end of a terminal does not."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


stop = StopRequest()
