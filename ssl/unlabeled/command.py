"""The commands of `unlabeled`: `commands/NAME.py` is the command NAME, found by its file name.

Each file has a `SUMMARY`, a line for `--help`, and two functions:

    add_arguments(parser: argparse.ArgumentParser) -> None
    run(options: argparse.Namespace) -> int                      the exit code; UserError when an option cannot be used
"""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path
from typing import Protocol, cast

from unlabeled import commands


class Command(Protocol):
    """The module of a command."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, options: argparse.Namespace) -> int: ...


def summaries() -> dict[str, str]:
    """The summary of every command by its name. The files are read, not imported: torch takes seconds."""
    files = {file.stem: file for folder in commands.__path__ for file in Path(folder).glob("[a-z]*.py")}
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in sorted(files.items())}
    lines = [(name, line) for name, tree in trees.items() for line in tree.body if isinstance(line, ast.Assign)]
    return {name: ast.literal_eval(line.value) for name, line in lines if ast.unparse(line.targets[0]) == "SUMMARY"}


def command(name: str) -> Command:
    """The command of a name, imported."""
    return cast("Command", importlib.import_module(f"unlabeled.commands.{name}"))
