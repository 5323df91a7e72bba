"""The command line of `unlabeled pretrain` and `unlabeled finetune`, which pretrain.py and finetune.py are, too."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from unlabeled.command import RECIPE, started
from unlabeled.errors import UserError
from unlabeled.launch.remembered import keep
from unlabeled.paths import expand
from unlabeled.signals import EXIT_BAD_INPUT

EPILOG = """exit codes: 0 done; 2 bad recipe or data; 75 stopped by SIGTERM, SIGUSR1, SIGHUP, Ctrl-C or for a lost
loader worker, after a checkpoint if any step was made: the same command goes on from there. Several processes, on GPUs
or a CPU: accelerate launch --multi_gpu --num_processes N -m unlabeled pretrain ..., or
torchrun --nproc_per_node N -m unlabeled pretrain ...
"""


def parse(name: str, summary: str, describe: Callable[[str], str], arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; `--help` and mistakes end the process.

    Args:
        name, summary: of the stage.
        describe: the text of `--help` about a section of its recipes; "" = all of them.
        arguments: of the command line.
    """

    class Help(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, section: Any, *_: Any) -> None:
            try:
                if section is None or os.path.isfile(section):  # a recipe behind --help is no section
                    text = parser.format_help() + "\nrecipe fields:\n\n" + describe("")
                else:
                    text = describe(section)
            except UserError as error:
                parser.exit(EXIT_BAD_INPUT, f"error: {error}\n")
            keep(name, arguments, text)
            print(text)
            parser.exit()

    parser = argparse.ArgumentParser(
        prog=typed(name),
        description=f"{summary.capitalize()}.",
        epilog=EPILOG,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=expand, help=RECIPE)
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields to change")
    parser.add_argument(
        "-h",
        "--help",
        action=Help,
        nargs="?",
        metavar="SECTION",
        help="show every field of a recipe, or those of a section such as optim.schedule or method.mae, and stop",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming; refuses to overwrite")
    parser.add_argument("--force", action="store_true", help="with --fresh: remove what an earlier run left")
    parser.add_argument(
        "--extend",
        type=_epochs,
        metavar="EPOCHS",
        help="go on with an earlier run, so many epochs beyond the recipe's, where it goes on as if it had always been "
        "that long (schedule constant, plateau or steps)",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.fresh and options.extend is not None:
        parser.error("--fresh starts over and --extend goes on: choose one")
    return options


def typed(name: str) -> str:
    """A program as it was started, for its usage line."""
    script = os.path.basename(sys.argv[0])
    return script if script == f"{name}.py" else f"{started()} {name}"


def _epochs(text: str) -> float:
    """A number of epochs above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number of epochs above 0, found {text!r}")
