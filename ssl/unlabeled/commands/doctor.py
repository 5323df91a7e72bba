"""`unlabeled doctor`: options, the order of things, output."""

from __future__ import annotations

import argparse

from unlabeled.command import RECIPE, add_engine
from unlabeled.paths import expand, user_path

SUMMARY = "look at pictures, machine and recipe before a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    add = parser.add_argument
    add("recipe", type=expand, help=RECIPE)
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change")
    add("--pictures", type=int, default=2000, metavar="N", help="pictures to look at in each split (default 2000)")
    add("--full", action="store_true", help="look at all pictures")
    kept = "keep what is measured of pictures in this folder: an interrupted look goes on"
    add("--keep", type=user_path, metavar="FOLDER", help=kept)
    add("--seconds", type=float, default=5, help="duration of each measurement of speed (default 5)")
    add("--hours", type=float, default=72, help="time that a run may take; a longer one is not ready (default 72)")
    add("--csv", type=user_path, metavar="FILE", help="write every copy and leak that was found")
    table = "write all pictures as a table for data: {name: table} with a train and a val that share no copies"
    add("--split", type=user_path, metavar="FILE", help=table)
    group = "with --split: keep pictures of one folder together, or those whose paths match alike ('patient(\\d+)')"
    add("--group", metavar="folder|REGEX", help=group)
    add("--val-share", type=float, default=0.2, help="with --split: share of the pictures in val (default 0.2)")
    add("--html", type=user_path, metavar="FILE", help="write the report as a page here")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Look, measure, print. Returns 2 where a run would fail or be spoiled."""
    from unlabeled.work.doctor import run

    return run(options)
