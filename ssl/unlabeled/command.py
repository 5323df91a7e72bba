"""The commands of `unlabeled`: `commands/NAME.py` is the command NAME, found by its file name.

The programs `pretrain` and `finetune` are the files of `stages/`, see `unlabeled.launch.program`. A command has a
`SUMMARY`, a line for `--help`, and two functions:

    add_arguments(parser: argparse.ArgumentParser) -> None
    run(options: argparse.Namespace) -> int                      the exit code; UserError when an option cannot be used

The completion of shells imports them all, and `--help` one, so none imports torch or timm: `run` imports its work,
which stands beside what it drives, or in `work/NAME.py`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from unlabeled import __version__, commands
from unlabeled.environment import versions

DESCRIPTION = "Self-supervised pretraining for images: from a folder of pictures to a timm backbone."
EPILOG = """first steps:
  unlabeled start PICTURES           looks at your pictures and this machine, and writes recipe.yaml
  unlabeled pretrain recipe.yaml     an encoder from these pictures, without labels
  unlabeled recipes list             what else can be trained, and what it costs
  unlabeled COMMAND --help
"""
# help texts of several commands
EXPORT = "an export folder (runs/NAME/export)"
ADDRESSES = f"{EXPORT}, METHOD:FILE.pth, timm:NAME, hf-hub:OWNER/NAME, or PACKAGE.MODULE:NAME:FOLDER"
GIVEN = (
    "a folder, a tar, a glob of tars, a table (.csv, .tsv, .parquet), 'shapes', a recipe (.yaml, or a name of "
    "`unlabeled recipes list`) or a run's folder (runs/NAME)"
)
RECIPE = "a YAML file, or a name of `unlabeled recipes list`"


PACKAGE = Path(__file__).parent
ENGINES = sorted(file.stem for file in (PACKAGE / "sharing" / "engines").glob("[!_]*.py"))
STAGES = PACKAGE / "stages"  # importing the package would import torch


class Command(Protocol):
    """The module of a command."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, options: argparse.Namespace) -> int: ...


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the option that says who shares the work."""
    said = "who shares the work: processes of this machine or of a launcher (default), or a Ray cluster"
    parser.add_argument("--engine", choices=ENGINES, default="processes", help=said)


def started() -> str:
    """What was typed to start this process, for usage lines: `unlabeled`, or `python -m unlabeled`."""
    return "python -m unlabeled" if Path(sys.argv[0]).absolute() == PACKAGE / "__main__.py" else "unlabeled"


def programs() -> list[str]:
    """The names of the stages, which read a recipe and train."""
    return sorted((file.stem for file in STAGES.glob("[a-z]*.py")), reverse=True)


def parser(fill: Callable[[str, argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """The command line of `unlabeled`; `fill` adds the options of a command, by its name."""
    whole = argparse.ArgumentParser(
        prog=started(), description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="show the versions that decide results, and stop")
    commands = whole.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, summary in summaries().items():
        fill(name, commands.add_parser(name, help=summary, add_help=name not in programs()))
    return whole


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = versions()
        names = ("torch", "timm", "accelerate", "python")
        print(f"unlabeled {__version__} ({', '.join(f'{name} {found[name]}' for name in names)})")
        parser.exit()


def summaries() -> dict[str, str]:
    """The summary of every program and command by its name. The files are read, not imported: torch takes seconds."""
    files = [STAGES / f"{name}.py" for name in programs()]
    files += [file for folder in commands.__path__ for file in sorted(Path(folder).glob("[a-z]*.py"))]
    return {file.stem: summary(file) for file in files}


def summary(file: Path) -> str:
    """The `SUMMARY` of a program or command, which its file sets."""
    lines = ast.parse(file.read_text(encoding="utf-8")).body
    named = (line.value for line in lines if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SUMMARY")
    return str(ast.literal_eval(next(named)))


def kinds(folder: str) -> list[str]:
    """The names of the files in a folder of kinds, such as `evaluate/protocols`, without importing them."""
    return sorted(file.stem for file in (PACKAGE / folder).glob("[a-z]*.py"))


def command(name: str) -> Command:
    """The command of a name, imported."""
    return cast("Command", importlib.import_module(f"unlabeled.commands.{name}"))
