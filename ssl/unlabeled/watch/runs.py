"""The runs of a folder and where each of them stands; what has not changed is not read again."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

from unlabeled.errors import first_line
from unlabeled.page.state import State, state
from unlabeled.watch.found import Found, search

SEARCHED_FOR = 1.0  # seconds for which a search is good
READ_FOR = 15.0  # seconds after which the words of a run that has not ended are read again: they tell the time
FINAL = ("ended", "stopped", "failed")


class Listed(NamedTuple):
    """Something to show, and where it stands; None = it is no run, or cannot be read, for the reason in `trouble`."""

    found: Found
    state: State | None
    trouble: str = ""


class _Read(NamedTuple):
    listed: Listed
    at: float


class Runs:
    """All runs below a folder.

    Args:
        root: the folder; its path is resolved.

    Attributes:
        whole: whether the last search saw everything.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.whole = root, True
        self._lock = threading.Lock()
        self._searched, self._read = float("-inf"), dict[str, _Read]()

    def all(self) -> dict[str, Listed]:
        """Everything to show, by its path relative to the folder."""
        with self._lock:
            if time.monotonic() - self._searched > SEARCHED_FOR:
                found, self.whole = search(self.root)
                # what is gone is forgotten
                self._read = {one.path: self._known(one) for one in found}
                self._searched = time.monotonic()
            return {path: read.listed for path, read in self._read.items()}

    def _known(self, found: Found) -> _Read:
        read, now = self._read.get(found.path), time.monotonic()
        if read is not None and read.listed.found == found:
            known = read.listed.state
            if known is None or known.condition in FINAL or now - read.at < READ_FOR:
                return read
        return _Read(_listed(found), now)


def _listed(found: Found) -> Listed:
    if found.trouble or found.kind != "run":
        return Listed(found, None, found.trouble)
    try:
        return Listed(found, state(found.folder))
    except Exception as error:  # whatever is wrong with one run, the others are listed
        return Listed(found, None, f"cannot be read: {first_line(error)}")
