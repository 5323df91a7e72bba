"""`unlabeled discover EXPORT --labelled PATH --unlabelled PATH OUT`: classes that nobody has named yet."""

from __future__ import annotations

import argparse

from unlabeled.command import ADDRESSES, GIVEN
from unlabeled.paths import expand, user_path

SUMMARY = "clusters of unlabelled pictures: known classes, and new ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `discover`."""
    add = parser.add_argument
    add("export", type=expand, help=ADDRESSES)
    add("out", type=user_path, help="folder to fill; after an interruption the same command goes on")
    add("overrides", nargs="*", metavar="a.b=value", help="fields to change on both sides, such as data.label=species")
    add("--labelled", type=expand, required=True, metavar="PATH", help=f"pictures of the known classes: {GIVEN}")
    unlabelled = "pictures of known and new classes, as --labelled; names of their folders are scored, not used"
    add("--unlabelled", type=expand, required=True, metavar="PATH", help=unlabelled)
    classes = "how many classes there are, known ones included; auto estimates it (default auto)"
    add("--classes", default="auto", metavar="N|auto", help=classes)
    most = "auto: largest number to try (default 3 x known + 20)"
    add("--most", type=int, metavar="N", help=most)
    add("--starts", type=int, help="runs of k-means, of which the best counts (default 10, on a GPU 100)")
    add("--seed", type=int, default=0, help="draws centres, held-out classes and pictures to show (default 0)")
    add("--pool", choices=("cls", "mean", "mean_max", "cls_mean"), help="pooling of tokens (default: as exported)")
    add(
        "--precision",
        choices=("no", "bf16", "fp16"),
        help="mixed precision (default bf16 on a GPU that has it, else no: float32)",
    )
    add("--size", type=int, help="side of the crop, pixels (default: as exported)")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    add("--batch-size", type=int, default=256, help="pictures at a time (default 256)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default auto")
    add("--workers", type=int, help="processes that load pictures (default: one per core but one, 1 to 8)")


def run(options: argparse.Namespace) -> int:
    """Encode both sides, cluster, write the clusters and a page."""
    from unlabeled.work.discover import run

    return run(options)
