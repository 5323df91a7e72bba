"""`unlabeled embed EXPORT DATA OUT`: features of every picture, labelled or not."""

from __future__ import annotations

import argparse

from unlabeled.command import ADDRESSES, GIVEN, add_engine
from unlabeled.paths import expand, user_path

SUMMARY = "features of every picture through an exported encoder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `embed`."""
    add = parser.add_argument
    add("export", type=expand, help=ADDRESSES)
    add("data", type=expand, help=GIVEN)
    add("out", type=user_path, help="folder to fill; after an interruption the same command goes on")
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change, such as data.label=species")
    add("--split", choices=("train", "val"), default="train", help="split of a recipe, a run or shapes (default train)")
    add("--prefix", default="", help="subfolder of a folder or tar (default: all of it)")
    add("--pool", choices=("cls", "mean", "mean_max", "cls_mean"), help="pooling of tokens (default: as exported)")
    add("--tokens", action="store_true", help="keep the patch tokens too")
    add("--dtype", default="float32", choices=("float32", "float16"), help="data type of features (default float32)")
    add(
        "--precision",
        choices=("no", "bf16", "fp16"),
        help="mixed precision (default bf16 on a GPU that has it, else no: float32)",
    )
    add(
        "--format", default="safetensors", choices=("safetensors", "parquet"), help="of the files (default safetensors)"
    )
    add("--shard", type=int, default=4096, help="pictures per file (default 4096)")
    add("--size", type=int, help="side of the crop, pixels (default: as exported)")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    add("--batch-size", type=int, default=256, help="pictures at a time (default 256)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default auto")
    add("--workers", type=int, help="processes that load pictures (default: one per core but one, 1 to 8)")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Embed, with a line on how fast it goes."""
    from unlabeled.work.embed import run

    return run(options)
