"""`unlabeled ladder EXPORT DATA`: one encoder up the ladder of ways to use it."""

from __future__ import annotations

import argparse

from unlabeled.command import EXPORT, GIVEN
from unlabeled.ladder.ways import WAYS
from unlabeled.paths import expand, user_path

SUMMARY = "from kNN to fine-tuning: which way to use an encoder pays"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ladder`."""
    add = parser.add_argument
    shares = "shares of the labels to train on (default those of 0.01 0.1 1 that leave a picture of every class)"
    add("export", type=expand, help=EXPORT)
    add("data", type=expand, help=f"labelled pictures: {GIVEN}")
    add("--out", type=user_path, help="folder of runs, table, plot and page (default runs/ladder_NAME)")
    add("--train", metavar="SPLIT", help="subfolder or split to train on (default train)")
    add("--val", metavar="SPLIT", help="subfolder or split to test on (default val)")
    add("--allow-overlap", action="store_true", help="allow test pictures that are training pictures too")
    add("--rungs", nargs="+", choices=WAYS, help="rungs to climb (default: all that the network has)")
    others = "pictures without labels for a rung that learns from them too: a folder or tar, or train for those of DATA"
    add("--unlabelled", type=expand, metavar="PATH", help=others)
    without = "leave out the most frequent class, raw pixels and the untrained network"
    add("--no-baselines", dest="baselines", action="store_false", help=without)
    add("--fractions", nargs="+", type=float, help=shares)
    add("--shots", nargs="+", type=int, default=[], help="labels of each class, besides shares or in place of them")
    add("--seeds", type=int, default=3, help="repetitions with other labels, heads, orders and crops (default 3)")
    add("--steps", type=int, default=1000, help="optimizer steps of a trained rung (default 1000)")
    add("--batch-size", type=int, default=64, help="of a trained rung, at most a quarter of the labels (default 64)")
    add("--pool", choices=("cls", "mean"), help="pooling of all rungs but the attentive probe (default: as exported)")
    add("--crop-pct", type=float, help="share of the side that evaluation keeps (default: as exported)")
    add("--min-scale", type=float, default=0.4, help="least share of the area that a training crop has (default 0.4)")
    fields = "settings of probes, fields of the recipes of other rungs, and of the data (data.label=species)"
    add("--set", nargs="+", action="extend", default=[], metavar="RUNG.a.b=value", help=fields)
    add("--html", type=user_path, metavar="FILE", help="write the page here too, beside index.html of --out")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--workers", type=int, default=1, help="processes that load pictures (default 1)")


def run(options: argparse.Namespace) -> int:
    """Climb, and write ladder.json, ladder.md, ladder.png and index.html."""
    from unlabeled.work.ladder import run

    return run(options)
