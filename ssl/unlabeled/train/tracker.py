"""Where a run is logged to beside its own files: the contract of `trackers/NAME.py`, and all trackers of a run at once.

NAME.py has `MEND`, a sentence on what to do where it cannot start, and `start(tracked) -> Tracker`. The name is also
that of the Python package which it needs, and of the extra that installs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from pydantic import BaseModel

from unlabeled.errors import UserError, first_line
from unlabeled.processes import on_main
from unlabeled.recipe import flat

PACKAGE = "unlabeled.train.trackers"


class Tracked(NamedTuple):
    """A run as trackers know it."""

    name: str
    folder: Path  # for what a tracker keeps on this machine
    recipe: Mapping[str, str]  # fields by dotted name
    step: int  # of the checkpoint that the run goes on from; 0 = it begins

    def begun_as(self, tracker: str) -> str | None:
        """The name under which a tracker knows the beginning of this run; None = there is none."""
        file = self.folder / f"{tracker}.id"
        return file.read_text(encoding="utf-8") if self.step and file.is_file() else None

    def note(self, tracker: str, name: str) -> None:
        """Write down the name under which a tracker knows this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{tracker}.id").write_text(name, encoding="utf-8")


class Tracker(ABC):
    """A live connection; its methods may raise anything."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step. A step may come several times, with other values, and again after a resume."""

    @abstractmethod
    def show(self, step: int, file: Path) -> None:
        """Send a PNG of a step, under the name of its folder."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left, and end the run there."""


def tracker_names() -> list[str]:
    """The names of the files in `trackers/`, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError when the package of a tracker is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"run.trackers names {' and '.join(missing)}, not installed here. Run `pip install {' '.join(missing)}`, "
            "or leave it out of run.trackers."
        )


class Trackers:
    """The trackers of a run, on its main process. One that fails is named, and left out from then on."""

    def __init__(self, accelerator: Accelerator, names: Sequence[str], say: Callable[[str], None] = print) -> None:
        self.accelerator, self.names, self.say = accelerator, names, say
        self._live: dict[str, Tracker] = {}

    def start(self, name: str, recipe: BaseModel, folder: Path, step: int) -> None:
        """Begin a run, or go on with it after a step. Call it on all processes.

        Raises:
            UserError: one cannot be started.
        """
        fields = {key: str(value) for key, value in flat(recipe.model_dump()).items()}
        on_main(self.accelerator, lambda: self._start(Tracked(name, folder, fields, step)))

    def _start(self, tracked: Tracked) -> None:
        for name in dict.fromkeys(self.names):
            kind = importlib.import_module(f"{PACKAGE}.{name}")
            try:
                self._live[name] = kind.start(tracked)
            except Exception as error:  # a server, a database, a package that is half there: the person must hear it
                self.close()
                raise UserError(
                    f"cannot start {name}: {first_line(error)}. {kind.MEND}, or leave {name} out of run.trackers."
                ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, values))

    def show(self, step: int, file: Path) -> None:
        """Send a PNG of a step."""
        self._each(lambda tracker: tracker.show(step, file))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._live.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name in list(self._live):
            self._try(name, action)

    def _try(self, name: str, action: Callable[[Tracker], None]) -> None:
        try:
            action(self._live[name])
        except Exception as error:  # a server that is gone must not end a run of days
            del self._live[name]
            self.say(f"{name} is switched off: {first_line(error)}. metrics.jsonl goes on.")
