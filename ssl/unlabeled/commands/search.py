"""`unlabeled search FEATURES --like PICTURE`: the pictures that look most like others."""

from __future__ import annotations

import argparse

from unlabeled.paths import expand, user_path

SUMMARY = "the pictures that look most like others, among those that were embedded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `search`."""
    add = parser.add_argument
    add("features", type=user_path, help="folder that `unlabeled embed EXPORT PICTURES FEATURES` filled")
    like = "files of pictures, or names of pictures as they were embedded"
    add("--like", nargs="+", default=[], type=expand, metavar="PICTURE", help=like)
    add("--k", type=int, default=10, help="pictures to find for each (default 10)")
    add("--build", action="store_true", help="make an index of FAISS first, for millions of pictures; it stays there")
    add("--encoder", type=expand, metavar="EXPORT", help="where the encoder is now (default: where it was)")
    add("--html", type=user_path, metavar="FILE", help="a page with the pictures")
    add("--json", action="store_true", help="print the answers for machines")


def run(options: argparse.Namespace) -> int:
    """Build, search, show."""
    from unlabeled.work.search import run

    return run(options)
