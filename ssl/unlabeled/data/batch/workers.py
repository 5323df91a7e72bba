"""Loader workers that are lost are noticed at once, and only where a batch is waited for.

torch raises from a signal handler wherever the program happens to be: in the middle of an update, or of a collective in
which other processes wait.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from unlabeled.data.decoding.memory import ADVICE, is_out_of_memory
from unlabeled.errors import Interrupted, UserError
from unlabeled.signals import STOP_SIGNALS, is_main_thread

DYING = 10.0  # seconds between the end of a worker's connection and its own
GOES_ON = "The same command goes on."
NO_SHARED_MEMORY = (
    "/dev/shm is full: make it larger (docker: --shm-size=8g or --ipc=host), lower run.workers, or set run.workers=0. "
    + GOES_ON
)
REASONS = {
    -signal.SIGKILL: ADVICE,
    errno.ENOMEM: ADVICE,
    -signal.SIGBUS: NO_SHARED_MEMORY,
    errno.ENOSPC: NO_SHARED_MEMORY,
}

_waited_for: Batches | None = None


class Batches(Iterator[Any]):
    """The batches of a loader, whose workers end with it. Raises Interrupted when a worker is gone, gives nothing for
    the loader's timeout, or has no memory left; UserError when a worker raised it."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._timeout = loader.timeout
        # a worker that a signal meets before it can ignore it would be lost
        with _held_back():
            self._iterator: Iterator[Any] = iter(loader)
        if is_main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, _on_child)
            signal.signal(signal.SIGALRM, _on_alarm)

    def __next__(self) -> Any:
        global _waited_for
        self.check()
        _waited_for = self
        try:
            with _within(self._timeout):
                return next(self._iterator)
        except _TooLong:
            self.check()
            raise self._nothing_came() from None
        except UserError as error:
            # torch raises a worker's under its own type, with the worker's traceback for a message
            raise _said(str(error)) or error from None
        except (RuntimeError, OSError, EOFError, MemoryError) as error:
            # torch, or the connection, may have noticed first
            told = isinstance(error, RuntimeError) or is_out_of_memory(error)
            self.check(0 if told else DYING)
            raise self._plain(error) from error
        finally:
            _waited_for = None

    @property
    def _workers(self) -> Sequence[Any]:
        return getattr(self._iterator, "_workers", ())

    def check(self, patience: float = 0) -> None:
        """Raise Interrupted if a worker is gone, or goes within so many seconds."""
        patient = bool(patience and self._workers)
        dying = wait([worker.sentinel for worker in self._workers], patience) if patient else ()
        for number, worker in enumerate(self._workers):
            if worker.sentinel in dying:
                worker.join()
            if code := worker.exitcode:
                end = signal.Signals(-code).name if code < 0 else f"code {code}"
                advice = REASONS.get(code, GOES_ON)
                raise Interrupted(f"loader worker {number} (process {worker.pid}) was ended by {end}. {advice}")

    def _plain(self, error: Exception) -> Exception:
        """The cause of an error, without the worker's traceback."""
        text = str(error)
        if said := _said(text):
            return said
        if "timed out" in text:
            return self._nothing_came()
        if "shared memory" in text:
            return Interrupted(f"a loader worker cannot send a batch. {NO_SHARED_MEMORY}")
        if is_out_of_memory(error):
            return Interrupted(f"no memory was left to make a batch. {ADVICE}")
        return error

    def _nothing_came(self) -> Interrupted:
        given = f"no loader worker gave a batch in run.timeout={self._timeout:g} seconds"
        frozen = [f"worker {n} (process {w.pid})" for n, w in enumerate(self._workers) if _is_frozen(w.pid)]
        why = f"{' and '.join(frozen)} was stopped by a signal (SIGSTOP)." if frozen else "does the storage answer?"
        return Interrupted(f"{given}: {why} {GOES_ON}")

    def close(self) -> None:
        for worker in self._workers:
            # first: they do not listen to SIGTERM, and torch would wait for one that hangs or is frozen
            worker.kill()
        self._iterator = iter(())

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _TooLong(Exception):
    """Raised where a batch is waited for, when the time is over."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _TooLong inside after so many seconds; 0 = never. torch's own timeout does not reach into the receipt of a
    batch, of which a worker has sent a part only, or not yet the memory it lies in."""
    if not seconds or not is_main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    if _waited_for is not None:
        raise _TooLong


@contextmanager
def _held_back() -> Iterator[None]:
    """Within, signals to stop wait; processes that are started inherit this, see `listen_to_nobody`."""
    if not is_main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen_to_nobody() -> None:
    """In a worker: signals for the process group reach it too, but only the main process may act on them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _is_frozen(process: int) -> bool:
    """Whether SIGSTOP or a debugger holds a process, where /proc says so."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _said(text: str) -> UserError | None:
    """The error at the end of a worker's traceback, if it is the user's."""
    found = re.findall(r"^unlabeled\.errors\.(UserError|Interrupted): (.*)", text, re.MULTILINE)
    return {"UserError": UserError, "Interrupted": Interrupted}[found[-1][0]](found[-1][1]) if found else None


def _on_child(_number: int, _frame: FrameType | None) -> None:
    if _waited_for is not None:
        _waited_for.check()


def forgive_who_hangs_up() -> None:
    """In a worker: a run that is told to stop may break off while it receives a batch. The thread that hands over the
    memory of batches would print a traceback."""
    say = sys.excepthook

    def said(kind: type[BaseException], *more: Any) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            say(kind, *more)

    sys.excepthook = said


def end_where_batches_cannot_be_sent() -> None:
    """In a worker: end where memory is full. The thread that sends would print a traceback and send nothing."""

    say = Queue._on_queue_feeder_error  # type: ignore[attr-defined]

    def end(error: Exception, batch: Any) -> None:
        if "shared memory" in str(error):
            os._exit(errno.ENOSPC)
        if is_out_of_memory(error):
            os._exit(errno.ENOMEM)
        say(error, batch)
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]
