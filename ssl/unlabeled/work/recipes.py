"""The work of `unlabeled recipes`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

from rich.console import Console

from unlabeled.errors import UserError
from unlabeled.recipe import said
from unlabeled.recipe.header import header
from unlabeled.recipe.shipped import PROGRAMS, called, find, names
from unlabeled.report import terminal
from unlabeled.report.document import Document, Table, Text
from unlabeled.signals import EXIT_DONE
from unlabeled.text import one_line, plain


def run(options: argparse.Namespace) -> int:
    """List, show or copy."""
    if options.action == "list":
        _list(options.words)
    elif options.action == "show":
        print(plain(find(options.recipe).read_text(encoding="utf-8")), end="")
    else:
        _copy(find(options.recipe), options.file)
    return EXIT_DONE


def _list(words: list[str]) -> None:
    rows = [(name.rpartition("/")[0], *row) for name, file in names().items() if _has(row := _row(file), name, words)]
    if not rows:
        raise UserError(f"no recipe has the words {' '.join(words)}. Leave them out to see all recipes.")
    parts: list[Text | Table] = []
    for folder, group in groupby(rows, key=lambda row: row[0]):
        parts += [Text(folder, "heading"), Table.facts([(name, text) for _, name, text in group])]
    document = Document("", parts)
    if sys.stdout.isatty():
        terminal.show(Console(), document)
    else:
        print(terminal.write(document), end="")


def _row(file: Path) -> tuple[str, str]:
    """The name of a recipe and what there is to know of it."""
    found = header(file)
    return called(file), f"{found.about} [{found.method}, {found.network}] Cost: {found.cost}"


def _has(row: tuple[str, str], name: str, words: list[str]) -> bool:
    return all(word.lower() in f"{name} {row[1]}".lower() for word in words)


def _copy(source: Path, target: Path | None) -> None:
    """Write a recipe into a new file."""
    target = Path(source.name) if target is None else target / source.name if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{target} is there already, and a copy replaces nothing. Choose another file.") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}. Choose another file.") from None
    found = said(target)
    program = next(program for field, program in PROGRAMS.items() if field in found)
    print(one_line(f"{target}  (unlabeled {program} {target})"))
