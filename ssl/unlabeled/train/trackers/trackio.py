"""Trackio: a run in the project `unlabeled`, in TRACKIO_DIR on this machine, or where TRACKIO_SPACE_ID or
TRACKIO_SERVER_URL say; `trackio show` draws it.

A run that goes on after a step goes on as the same run there. Trackio takes nothing back: steps between that one and
the end of a killed run are sent twice, with the same values.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from unlabeled.train.tracker import Tracked, Tracker

MEND = "Mend it (Trackio reads TRACKIO_DIR, TRACKIO_SPACE_ID and TRACKIO_SERVER_URL)"


class Trackio(Tracker):
    """One run, called by the run's name and four hexadecimal digits: Trackio resumes by name."""

    def __init__(self, tracked: Tracked) -> None:
        import trackio

        self._trackio = trackio
        name = tracked.begun_as("trackio") or f"{tracked.name}-{secrets.token_hex(2)}"
        self._run = trackio.init(
            project="unlabeled", name=name, config=dict(tracked.recipe), resume="allow", embed=False
        )
        tracked.note("trackio", name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, file: Path) -> None:
        self._run.log({file.parent.name: self._trackio.Image(str(file))}, step=step)

    def close(self) -> None:
        self._run.finish()


start = Trackio
