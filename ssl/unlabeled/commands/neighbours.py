"""`unlabeled neighbours EXPORT PICTURES OUT`: for every picture its nearest; near-duplicates; likely wrong labels."""

from __future__ import annotations

import argparse

from unlabeled.command import ADDRESSES, GIVEN
from unlabeled.paths import expand, user_path

SUMMARY = "nearest pictures, near-duplicates and labels that are likely wrong, as tables and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `neighbours`."""
    add = parser.add_argument
    add("export", type=expand, help=ADDRESSES)
    add("pictures", type=expand, help=f"labelled or not: {GIVEN}")
    add("out", type=user_path, help="folder for index.html, neighbours.csv, duplicates.csv and labels.csv")
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change, such as data.label=species")
    splits = "splits, or subfolders, to take pictures from (default: those named train, val and the like, or all)"
    add("--split", nargs="+", metavar="NAME", help=splits)
    add("--most", type=int, default=20_000, metavar="N", help="pictures at most; drawn (default 20000)")
    add("--k", type=int, default=10, help="neighbours of each picture (default 10)")
    add("--threshold", type=float, default=0.98, help="cosine from which two are near-duplicates (default 0.98)")
    add("--pool", choices=("cls", "mean", "mean_max", "cls_mean"), help="pooling of tokens (default: as exported)")
    add("--image-size", type=int, metavar="SIDE", help="another size; position embeddings are resampled")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    add("--seed", type=int, default=0, help="draws pictures (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--workers", type=int, default=2, help="processes that load pictures (default 2)")


def run(options: argparse.Namespace) -> int:
    """Encode, find, write the tables and the page."""
    from unlabeled.work.neighbours import run

    return run(options)
