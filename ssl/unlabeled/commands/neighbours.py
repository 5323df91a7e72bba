"""`unlabeled neighbours EXPORT PICTURES OUT`: for every picture its nearest; near-duplicates; likely wrong labels."""

from __future__ import annotations

import argparse

from unlabeled.launch.picture_options import add_picture_options

SUMMARY = "nearest pictures, near-duplicates and labels that are likely wrong, as tables and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `neighbours`."""
    add_picture_options(parser, "folder for index.html, neighbours.csv, duplicates.csv and labels.csv")
    add = parser.add_argument
    add("--most", type=int, default=20_000, metavar="N", help="pictures at most; drawn (default 20000)")
    add("--k", type=int, default=10, help="neighbours of each picture (default 10)")
    add("--threshold", type=float, default=0.98, help="cosine from which two are near-duplicates (default 0.98)")
    add("--seed", type=int, default=0, help="draws pictures (default 0)")


def run(options: argparse.Namespace) -> int:
    """Encode, find, write the tables and the page."""
    from unlabeled.work.neighbours import run

    return run(options)
