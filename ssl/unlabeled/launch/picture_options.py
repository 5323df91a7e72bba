"""The options of a command that shows pictures through an encoder. Imports neither torch nor timm, as commands do."""

from __future__ import annotations

import argparse

from unlabeled.command import ADDRESSES, GIVEN
from unlabeled.paths import expand, user_path


def add_picture_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that `unlabeled.launch.shown` reads; `out` is the help of the folder to fill."""
    add = parser.add_argument
    add("export", type=expand, help=ADDRESSES)
    add("pictures", type=expand, help=f"labelled or not: {GIVEN}")
    add("out", type=user_path, help=out)
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change, such as data.label=species")
    splits = "splits, or subfolders, to take pictures from (default: those named train, val and the like, or all)"
    add("--split", nargs="+", metavar="NAME", help=splits)
    add("--pool", choices=("cls", "mean", "mean_max", "cls_mean"), help="pooling of tokens (default: as exported)")
    add("--image-size", type=int, metavar="SIDE", help="another size; position embeddings are resampled")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--workers", type=int, default=2, help="processes that load pictures (default 2)")
