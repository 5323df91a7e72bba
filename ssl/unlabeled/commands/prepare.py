"""`unlabeled prepare RECIPE data.cache=FOLDER`: options, a bar, and what was done."""

from __future__ import annotations

import argparse

from unlabeled.command import RECIPE, add_engine
from unlabeled.data.archive.storing import Settings
from unlabeled.paths import expand

SUMMARY = "small copies of a recipe's pictures, read several times as fast"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `prepare`."""
    add = parser.add_argument
    add("recipe", type=expand, help=f"{RECIPE}; its data.cache is the folder to fill")
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change")
    for name, field in Settings.model_fields.items():
        said = f"{field.description} (default {field.default})"
        add(f"--{name.replace('_', '-')}", type=type(field.default), default=field.default, help=said)
    add("--workers", type=int, help="processes (default: one per core of this machine)")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Prepare every source of a recipe that has a cache."""
    from unlabeled.work.prepare import run

    return run(options)
