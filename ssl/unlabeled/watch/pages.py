"""The pages of runs and comparisons, made when they are asked for, one at a time each, kept until a file changes."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from unlabeled.page import compare, run
from unlabeled.page.state import state
from unlabeled.report import html
from unlabeled.watch.found import PAGE, Found, survey
from unlabeled.watch.frame import Page, page

HOME = "/"
REFRESH = 5.0  # seconds between two looks at a page that is open
SHARE = 0.05  # of the time at most is spent on making one page again and again
KEPT = 12  # pages

# a page that was written to disk, perhaps by somebody else: it may run, but as a stranger, and load nothing
STRANGER = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Slot:
    """A page, and what it was made of; `readers` know what was read of the files of its runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.page: Page | None = None
        self.mark: Any = None
        self.until = 0.0  # by then it may be made again
        self.readers: dict[Path, run.Reader] = {}

    def reader(self, folder: Path) -> run.Reader:
        return self.readers.setdefault(folder, run.Reader(folder))


class Pages:
    """Makes the pages of what lies in a folder whose path is resolved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock, self._slots = threading.Lock(), OrderedDict[tuple[str, ...], _Slot]()

    def of(self, one: Found) -> Page:
        """The page of a run or a report. Raises OSError, ValueError."""
        return self._kept((one.path,), [one], _stored if one.kind == "report" else _written)

    def comparison(self, several: Sequence[Found]) -> Page:
        """Several runs beside each other. Raises OSError, ValueError."""
        return self._kept(tuple(one.path for one in several), several, self._compared)

    def _compared(self, slot: _Slot, *folders: Path) -> Page:
        curves = {folder: slot.reader(folder).curves for folder in folders}
        return _framed(html.write(compare.document(folders, curves), self.root, REFRESH, HOME))

    def _kept(self, key: tuple[str, ...], several: Sequence[Found], make: Callable[..., Page]) -> Page:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > KEPT:
                self._slots.popitem(last=False)
        with slot.lock:  # whoever asks for the same page meanwhile waits for it
            began = time.monotonic()
            mark = [(survey(self.root, one), _words(one)) for one in several]
            if slot.page is None or (mark != slot.mark and began >= slot.until):
                slot.page, slot.mark = make(slot, *(one.folder for one in several)), mark
                slot.until = time.monotonic() + (time.monotonic() - began) / SHARE
            return slot.page


def _words(one: Found) -> str:
    """Words on a page that change with time alone."""
    return state(one.folder).words if one.kind == "run" else ""


def _written(slot: _Slot, folder: Path) -> Page:
    return _framed(html.write(run.document(folder, slot.reader(folder)), folder, REFRESH, HOME))


def _framed(text: str) -> Page:
    """A page of ours, under the policy that it says itself, in its head before any word of a run."""
    said = re.search('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert said is not None, "a page says its policy"
    return page(text, f"{unescape(said[1])}; frame-ancestors 'none'")


def _stored(slot: _Slot, folder: Path) -> Page:
    return page((folder / PAGE).read_text(encoding="utf-8", errors="replace"), STRANGER)
