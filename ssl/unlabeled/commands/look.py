"""`unlabeled look EXPORT PICTURES OUT`: one page about what an encoder makes of pictures."""

from __future__ import annotations

import argparse

from unlabeled.command import ADDRESSES, GIVEN
from unlabeled.paths import expand, user_path

SUMMARY = "attention, components, neighbours and a map of pictures through an encoder, as one page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `look`."""
    add = parser.add_argument
    add("export", type=expand, help=ADDRESSES)
    add("pictures", type=expand, help=f"labelled or not: {GIVEN}")
    add("out", type=user_path, help="folder for index.html and its files; what an earlier look left is replaced")
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change, such as data.label=species")
    splits = "splits, or subfolders, to take pictures from (default: those named train, val and the like, or all)"
    add("--split", nargs="+", metavar="NAME", help=splits)
    add("--most", type=int, default=10_000, metavar="N", help="pictures to map at most (default 10000)")
    add("--queries", type=int, default=12, help="pictures whose nearest neighbours are shown (default 12)")
    add("--examples", type=int, default=8, help="pictures whose attention and components are drawn (default 8)")
    planes = "the plane: UMAP, or principal components (default auto)"
    add("--map", choices=("auto", "umap", "pca"), default="auto", help=planes)
    add("--pool", choices=("cls", "mean", "mean_max", "cls_mean"), help="pooling of tokens (default: as exported)")
    add("--image-size", type=int, metavar="SIDE", help="another size; position embeddings are resampled")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    add("--seed", type=int, default=0, help="draws pictures, queries, clusters and the plane (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--workers", type=int, default=2, help="processes that load pictures (default 2)")


def run(options: argparse.Namespace) -> int:
    """Look, write the page, print what can be printed of it."""
    from unlabeled.work.look import run

    return run(options)
