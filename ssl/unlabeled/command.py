"""The commands of `python -m unlabeled`: `commands/NAME.py` is the command NAME, found by its file name.

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

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its options."""

    def run(self, options: argparse.Namespace) -> int:
        """Run it; returns the exit code."""


def summaries() -> dict[str, str]:
    """The summary of every command by its name. The files are read, not imported: torch takes seconds."""
    files = {file.stem: file for folder in commands.__path__ for file in Path(folder).glob("[a-z]*.py")}
    texts = {name: file.read_text(encoding="utf-8") for name, file in sorted(files.items())}
    return {name: next(filter(None, map(_summary, ast.parse(text).body))) for name, text in texts.items()}


def _summary(line: ast.stmt) -> str | None:
    is_summary = isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SUMMARY"
    return str(ast.literal_eval(line.value)) if isinstance(line, ast.Assign) and is_summary else None


def command(name: str) -> Command:
    """The command of a name, imported."""
    return cast("Command", importlib.import_module(f"unlabeled.commands.{name}"))
