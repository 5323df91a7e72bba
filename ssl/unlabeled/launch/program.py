"""The programs `pretrain` and `finetune`: a stage by its name, signals, and errors without tracebacks.

Nothing that takes long to import is imported here, so that signals are heard from the start.
"""

from __future__ import annotations

import errno
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from unlabeled.errors import Interrupted, Stopped, UserError, first_line
from unlabeled.launch.arguments import parse
from unlabeled.progress import Bars
from unlabeled.signals import EXIT_BAD_INPUT, EXIT_DONE, EXIT_LOST, EXIT_STOPPED, stop
from unlabeled.streams import make_lasting
from unlabeled.text import escape_logs, plain

# the disk is full, a quota is used up, or the disk is read-only: no fault of the program
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# another file has the name of the one to write, or lies in its way
PLACE_TROUBLE = (
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE),
)

LONGEST = 20_000  # characters of an error, however many faults it lists


class Engine(Protocol):
    """The engine as it is known here, see `unlabeled.train.engine`."""

    def run(self) -> bool:
        """Train; False when a signal stopped the run after a checkpoint."""


class Program(Protocol):
    """A stage as it is known here, see `unlabeled.launch.stage`."""

    def describe(self, section: str) -> str:
        """The text about a section of its recipes; "" = about all fields."""

    def begun(
        self, word: str, overrides: Sequence[str], **how: Any
    ) -> AbstractContextManager[tuple[Engine, Callable[[], None]] | None]:
        """The engine of a command line, ready to run, and the function that writes its results."""


def main(name: str, arguments: Sequence[str], *, last: bool = False) -> int:
    """Run one stage; returns the exit code.

    Args:
        name: of its file in `unlabeled.stages`.
        arguments: of the command line.
        last: whether the process ends after it, deaf to signals.
    """
    return exit_code(lambda: _run(name, arguments), last=last, where=" before the first step")


def _run(name: str, arguments: Sequence[str]) -> int:
    options = parse(name, arguments, lambda section: _stage(name).describe(section))
    how = {word: getattr(options, word) for word in ("dry_run", "fresh", "force", "extend")}
    with _stage(name).begun(options.recipe, options.overrides, **how) as begun:
        if begun is None:
            return EXIT_DONE
        engine, finish = begun
        if not engine.run():
            return EXIT_STOPPED
        finish()
    return EXIT_DONE


def _stage(name: str) -> Program:
    stage: Program = importlib.import_module(f"unlabeled.stages.{name}").STAGE
    return stage


def exit_code(run: Callable[[], int], *, last: bool, where: str = "") -> int:
    """Run a program; returns its exit code, or that of an error, which is printed without a traceback.

    Args:
        run: the program. A signal ends it wherever it stands, see `unlabeled.signals`.
        last: whether the process ends after it, so that later signals are ignored.
        where: the stage at its start, for the message of a signal.
    """
    with stop:
        stop.where = where
        try:
            with stop.now():
                make_lasting()
                escape_logs()
                # the plan says it once, torch says it for every loader
                warnings.filterwarnings("ignore", "This DataLoader will create")
                with Bars(active=os.environ.get("RANK", "0") == "0"):
                    code = run()
        except Stopped as error:
            code = _said(f"{error}. Nothing is lost: run the same command again.", EXIT_STOPPED)
        except Interrupted as error:
            code = _said(f"error: {error}", EXIT_STOPPED)
        except UserError as error:
            code = _said(f"error: {error}", EXIT_BAD_INPUT)
        except OSError as error:
            if error.errno not in (*DISK_TROUBLE, *PLACE_TROUBLE):
                raise
            mend = "Make room" if error.errno in DISK_TROUBLE else "Move it away, or mend it"
            code = _said(f"error: cannot write: {error}. {mend}; the same command goes on from there.", EXIT_BAD_INPUT)
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            lost = f"the connection to another process of this run is lost ({first_line(error)})"
            mend = "The first error of the others says why. The same command goes on from the newest checkpoint."
            code = _said(f"error: {platform.node()}, process {os.environ.get('RANK')}: {lost}. {mend}", EXIT_LOST)
        if last:
            stop.ignore()
    return code


def _is_lost(error: RuntimeError) -> bool:
    """Whether it is of torch.distributed: gloo's have no class of their own."""
    return "DistError" in (kind.__name__ for kind in type(error).__mro__) or "gloo/transport" in str(error)


def _said(text: str, code: int) -> int:
    more = len(text) - LONGEST
    text = f"{text[:LONGEST]}\n... and {more:,} more characters" if more > 0 else text
    print(plain(text), file=sys.stderr, flush=True)
    return code
