"""`unlabeled evaluate`: protocols on frozen features of exported encoders, on all labels or a few."""

from __future__ import annotations

import argparse

from unlabeled.command import GIVEN, kinds
from unlabeled.paths import expand, user_path

SUMMARY = "probes and other measures of exported encoders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add = parser.add_argument
    add("exports", nargs="+", type=expand, metavar="EXPORT", help="export folders (runs/NAME/export)")
    add("--data", type=expand, required=True, help=f"labelled pictures: {GIVEN}")
    add("--train", metavar="SPLIT", help="subfolder or split to train probes on (default train)")
    add("--val", metavar="SPLIT", help="subfolder or split to test probes on (default val)")
    add("--allow-overlap", action="store_true", help="allow test pictures that are training pictures too")
    names = f"{', '.join(kinds('evaluate/protocols'))}, or a module as PACKAGE.MODULE (default knn linear)"
    add("--protocol", nargs="+", default=["knn", "linear"], metavar="NAME", help=f"protocols to run: {names}")
    fields = "fields of protocols (linear.epochs=50 linear.blocks=[1,4] knn.k=[10,20]) or the data (data.label=species)"
    add("--set", nargs="+", action="extend", default=[], metavar="NAME.FIELD=VALUE", help=fields)
    add("--against", type=expand, metavar="EXPORT", help="another export, which cka compares each one with")
    unknown = "pictures of unknown classes for openset: a folder or tar (default: it holds classes out, 5 draws)"
    add("--unknown", type=expand, metavar="PATH", help=unknown)
    add("--fractions", nargs="+", type=float, default=[1.0], help="shares of the labels to train on (default 1)")
    add("--seeds", type=int, default=3, help="draws of each share below 1 (default 3)")
    add(
        "--pool",
        choices=("cls", "mean", "cls_mean", "mean_max", "own"),
        help="pooling of tokens into one vector (default: as exported)",
    )
    add("--image-size", type=int, metavar="SIDE", help="another size; position embeddings are resampled")
    add("--crop-pct", type=float, help="share of the side that is kept (default: as exported)")
    limit = "by default the last two only where they take less than 10 min"
    baselines = f"compare with the most frequent class, raw pixels and the untrained network; {limit}"
    add("--baselines", action=argparse.BooleanOptionalAction, help=baselines)
    add("--json", type=user_path, metavar="FILE", help="write results and protocol here")
    add("--markdown", type=user_path, metavar="FILE", help="write the table here")
    add("--html", type=user_path, metavar="FILE", help="write a page with the table and the scores as bars here")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--workers", type=int, default=2, help="processes that load pictures (default 2)")


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the table, write JSON, Markdown and HTML."""
    from unlabeled.work.evaluate import run

    return run(options)
