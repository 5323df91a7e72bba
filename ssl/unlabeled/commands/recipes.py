"""`unlabeled recipes list|show|copy`: the recipes that come with the package."""

from __future__ import annotations

import argparse

from unlabeled.paths import expand, user_path

SUMMARY = "the recipes that come with unlabeled: list, show, copy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `recipes`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    words = actions.add_parser("list", help="every recipe, with its method, its network and its cost").add_argument
    words("words", nargs="*", metavar="WORD", help="only those with all of these words, such as mae 1gpu")
    show = actions.add_parser("show", help="print a recipe").add_argument
    show("recipe", type=expand, help="a name of the list")
    copy = actions.add_parser("copy", help="write a recipe into a file of your own, to change it").add_argument
    copy("recipe", type=expand, help="a name of the list")
    copy("file", type=user_path, nargs="?", help="file or folder to write (default: here, by the name of the recipe)")


def run(options: argparse.Namespace) -> int:
    """List, show or copy."""
    from unlabeled.work.recipes import run

    return run(options)
