"""The page of a run, rewritten while it goes on: by a thread that the run never waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unlabeled.errors import first_line
from unlabeled.files import replacing
from unlabeled.page.run import Reader, document
from unlabeled.report import html

NAME = "index.html"
LEAST_REST = 5.0  # seconds between two rewritings
REST = 150.0  # the same, in CPU seconds of the last one: less than 1 % of the run, with the first and the last page
SIGN = 30.0  # seconds between signs of life
REFRESH = 10.0  # least seconds after which a page that is open reads itself anew
PATIENCE = 10.0  # seconds that the end of a run waits for the last page


class PageWriter:
    """Rewrites `index.html` of a run while it is entered, after `wake`; once at the beginning, and at the end.

    It touches `plan.json` as a sign of life. A page that cannot be written is said once, by `wake` or at the end, and
    tried again.

    Args:
        folder: of the run.
        say: prints a line, called by the thread that enters.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.cpu_seconds, self.pages = 0.0, 0
        self._reader = Reader(folder)
        self._news, self._over = threading.Event(), threading.Event()
        self._trouble, self._said = "", False
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def __enter__(self) -> PageWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._news.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._trouble = self._trouble or f"not done within {PATIENCE:g} s"
        self._tell()

    def wake(self) -> None:
        """Rewrite the page soon: something new stands in the folder. Returns at once."""
        self._news.set()
        self._tell()

    def _tell(self) -> None:
        if self._trouble and not self._said:
            self._said = True
            self.say(f"{self.folder / NAME} cannot be written: {self._trouble}. The run goes on without it.")

    def _run(self) -> None:
        while not self._over.is_set():
            self._news.clear()
            self._idle(time.monotonic() + self._write(live=True))
        self._write(live=False)

    def _idle(self, due: float) -> None:
        """Wait until there are news and the time is `due`, or the run is over."""
        while not self._over.is_set():
            self._give_sign()
            left = due - time.monotonic()
            if not self._news.wait(SIGN):
                continue
            if left <= 0:
                return
            self._over.wait(min(left, SIGN))

    def _write(self, live: bool) -> float:
        """Write the page; returns how long to rest after it, seconds."""
        before = time.thread_time()
        refresh = max(REFRESH, REST * self.cpu_seconds / max(1, self.pages)) if live else None
        try:
            text = html.write(document(self.folder, self._reader), self.folder, refresh)
            with replacing(self.folder / NAME) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except Exception as error:  # whatever it is, the run is worth more than its page
            self._trouble = self._trouble or first_line(error)
        spent = time.thread_time() - before
        self.cpu_seconds, self.pages = self.cpu_seconds + spent, self.pages + 1
        return max(LEAST_REST, REST * spent)

    def _give_sign(self) -> None:
        with suppress(OSError):
            os.utime(self.folder / "plan.json")
