"""`unlabeled look EXPORT PICTURES OUT`: one page about what an encoder makes of pictures."""

from __future__ import annotations

import argparse

from unlabeled.launch.picture_options import add_picture_options

SUMMARY = "attention, components, neighbours and a map of pictures through an encoder, as one page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `look`."""
    add_picture_options(parser, "folder for index.html and its files; what an earlier look left is replaced")
    add = parser.add_argument
    add("--most", type=int, default=10_000, metavar="N", help="pictures to map at most (default 10000)")
    add("--queries", type=int, default=12, help="pictures whose nearest neighbours are shown (default 12)")
    add("--examples", type=int, default=8, help="pictures whose attention and components are drawn (default 8)")
    planes = "the plane: UMAP, or principal components (default auto)"
    add("--map", choices=("auto", "umap", "pca"), default="auto", help=planes)
    add("--seed", type=int, default=0, help="draws pictures, queries, clusters and the plane (default 0)")


def run(options: argparse.Namespace) -> int:
    """Look, write the page, print what can be printed of it."""
    from unlabeled.work.look import run

    return run(options)
