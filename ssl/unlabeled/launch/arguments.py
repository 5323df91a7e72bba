"""The command line of `unlabeled pretrain` and `unlabeled finetune`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from unlabeled.command import RECIPE, STAGES, started, summary
from unlabeled.errors import UserError
from unlabeled.launch.outline import fields
from unlabeled.launch.remembered import keep, recall
from unlabeled.signals import EXIT_BAD_INPUT

ALL = "all"  # a word after --help that is no section
EPILOG = """exit codes: 0 done; 2 bad recipe or data; 75 stopped by SIGTERM, SIGUSR1, SIGHUP, Ctrl-C or for a lost
loader worker, after a checkpoint if any step was made: the same command goes on from there. Several processes, on GPUs
or a CPU: accelerate launch --multi_gpu --num_processes N -m unlabeled {name} ..., or
torchrun --nproc_per_node N -m unlabeled {name} ...
"""


def parse(name: str, arguments: Sequence[str], describe: Callable[[str], str]) -> argparse.Namespace:
    """Read a command line; `--help` and mistakes end the process.

    Args:
        name: of the stage.
        arguments: of the command line.
        describe: the text about a section of its recipes; "" = about all fields.
    """

    class Help(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, section: Any, *_: Any) -> None:
            try:
                # a recipe behind --help is no section
                short = section is None or os.path.isfile(section)
                print(_short(parser, name) if short else _remembered(name, section, describe), end="")
            except UserError as error:
                parser.exit(EXIT_BAD_INPUT, f"error: {error}\n")
            parser.exit()

    script = os.path.basename(sys.argv[0])
    parser = argparse.ArgumentParser(
        prog=script if script == f"{name}.py" else f"{started()} {name}",
        description=f"{summary(STAGES / f'{name}.py').capitalize()}.",
        epilog=EPILOG.format(name=name),
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, Help)
    options = parser.parse_intermixed_args(arguments)
    if options.fresh and options.extend is not None:
        parser.error("--fresh starts over and --extend goes on: choose one")
    return options


def add_arguments(parser: argparse.ArgumentParser, help_action: str | type[argparse.Action]) -> None:
    """The options of both programs; `help_action` is what argparse does at `--help`."""
    add = parser.add_argument
    add("recipe", help=RECIPE)
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change")
    shown = f"show this, or the fields of a section such as optim.schedule or method.mae, or `{ALL}`, and stop"
    add("-h", "--help", action=help_action, nargs="?", metavar="SECTION", help=shown)
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--fresh", action="store_true", help="start over instead of resuming; refuses to overwrite")
    add("--force", action="store_true", help="with --fresh: remove what an earlier run left")
    longer = "go on with an earlier run, so many epochs beyond the recipe's, where it goes on as if it had always been "
    longer += "that long (schedule constant, plateau or steps)"
    add("--extend", type=_epochs, metavar="EPOCHS", help=longer)


def _short(parser: argparse.ArgumentParser, name: str) -> str:
    """A page of options and sections, for which nothing has to be imported."""
    known = fields(name)
    lines = [f"  {field:<{max(map(len, known))}}  {about}" for field, about in known.items()]
    more = (
        f"{parser.prog} --help SECTION says more, such as --help data or --help optim.schedule; --help {ALL} says all."
    )
    return "\n".join([parser.format_help(), "fields and sections of a recipe:", *lines, "", more, ""])


def _remembered(name: str, section: str, describe: Callable[[str], str]) -> str:
    """The text about a section, made once. Raises UserError where there is none."""
    text = recall(name, section)
    if text is None:
        text = describe("" if section == ALL else section).rstrip("\n") + "\n"
        keep(name, section, text)
    return text


def _epochs(text: str) -> float:
    """A number of epochs above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number of epochs above 0, found {text!r}")
