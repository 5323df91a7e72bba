"""Progress of long work: a bar with the time left on a terminal, lines at intervals elsewhere; and the time it took."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from unlabeled.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

T = TypeVar("T")
SAY_EVERY = 20.0  # seconds between lines where there is no terminal
FAST = 10.0  # items per second above which the rate is shown

_current: ContextVar[Bars | None] = ContextVar("bars", default=None)


class Bars:
    """Shows the tasks of `track` and `task` while it is entered; outside they are silent.

    Prints where `active`, as the main process is, on standard error by default, to keep standard output for results.
    The `clock` gives seconds, for the rate and the time left.
    """

    def __init__(
        self, active: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console  # rich takes long to import, and signals must be heard before

        self.active, self.clock = active, clock
        # a notebook says that it is a terminal, and rich would make HTML of every line: it gets lines of text
        plain = False if "ipykernel" in sys.modules else None
        self.console = console or Console(
            file=sys.stderr, highlight=False, soft_wrap=True, force_terminal=plain, force_jupyter=plain
        )
        self.progress = _progress(self.console) if active and self.console.is_terminal else None
        self.said = clock()
        self._outer: list[Bars | None] = []

    def __enter__(self) -> Bars:
        self._outer.append(_current.get())
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(self._outer.pop())
        if self.progress and not self._outer:
            self.progress.stop()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        if self.active:
            self.console.print(one_line(text), markup=False)
            self.said = self.clock()

    def due(self, seconds: float = SAY_EVERY) -> bool:
        """Whether nothing was printed for `seconds`."""
        return self.clock() - self.said >= seconds


class Task:
    """Work on `total` items, described by `what`, shown by `bars`; None = hidden."""

    def __init__(self, bars: Bars | None, what: str, total: int) -> None:
        self.bars, self.what, self.total, self.done = bars, what, total, 0
        self.started = bars.clock() if bars else 0.0
        self._bar: TaskID | None = None
        if bars and bars.progress:
            bars.progress.start()
            self._bar = bars.progress.add_task(one_line(what), total=total, line="")

    def advance(self, count: int = 1, left: float | None = None) -> None:
        """Count finished items; `left` are the seconds that the others take where they are not alike."""
        self.done += count
        if self.bars is None:
            return
        seconds = self.bars.clock() - self.started
        rate = self.done / seconds if seconds > 0 else 0.0
        if left is None and rate:
            left = (self.total - self.done) / rate
        more = f"{duration(left)} left" if left is not None and self.done < self.total else ""
        self.show("  ".join(filter(None, [f"{rate:,.0f}/s" if rate > FAST else "", more])))

    def show(self, line: str) -> None:
        """Show a text beside the bar; without a bar as a line, if nothing was printed for a while."""
        if self.bars and self.bars.progress and self._bar is not None:
            self.bars.progress.update(self._bar, completed=self.done, line=line)
        elif self.bars and self.done < self.total and self.bars.clock() - self.started >= SAY_EVERY and self.bars.due():
            self.bars.say(f"{self.what}  {self.done:,} of {self.total:,}  {line}")

    def close(self, keep: bool = False) -> None:
        """Remove the bar; with `keep` it stays on the screen, unless there are others."""
        if not (self.bars and self.bars.progress) or self._bar is None:
            return
        if keep and len(self.bars.progress.tasks) == 1:
            self.bars.progress.stop()
        self.bars.progress.remove_task(self._bar)
        if not self.bars.progress.tasks:
            self.bars.progress.stop()


def current() -> Bars | None:
    """The bars entered at the moment."""
    return _current.get()


def task(what: str, total: int) -> Task:
    """Begin work of `total` items; `advance` it, then `close` it."""
    return Task(_current.get(), what, total)


def track(items: Iterable[T], what: str, total: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """Yield items and show progress under a short description, such as `features of val`; `total` sums their sizes."""
    shown = task(what, total)
    try:
        for item in items:
            yield item
            shown.advance(size(item))
    finally:
        shown.close()


def duration(seconds: float, exact: bool = False) -> str:
    """Seconds in a unit that suits: 45 s, 12 min, 3.4 h, 2.1 d; `exact`: 4.2 s, below ten."""
    if exact and seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


class Clock:
    """Counts seconds from when it was made."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), _cpu_seconds()

    @property
    def seconds(self) -> float:
        """By the clock."""
        return time.perf_counter() - self._began

    @property
    def cpu_seconds(self) -> float:
        """Of all threads of this process, and of its loader workers that have ended."""
        return _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    multiprocessing.active_children()  # so that workers that have ended are counted
    return sum(os.times()[:4])


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    # standard output is not redirected among the bars; a narrow terminal cuts the line beside the bar, not the count
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if console.width >= 110 else 6),
        MofNCompleteColumn(),
        TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=console,
        redirect_stdout=False,
        expand=True,
    )
