"""`unlabeled start PICTURES`: its options."""

from __future__ import annotations

import argparse

from unlabeled.paths import expand, user_path

SUMMARY = "look at a folder of pictures and write a recipe that suits it and this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `start`."""
    add = parser.add_argument
    add("pictures", nargs="?", type=expand, help="a folder, a tar, a glob of tars, or a table (.csv, .tsv, .parquet)")
    add("--minutes", type=float, default=30, metavar="N", help="that pretraining may take (default 30)")
    add("--labels", type=expand, metavar="DATA", help="labelled pictures that lie elsewhere: a folder or a table")
    add("--out", type=user_path, default="recipe.yaml", metavar="FILE", help="the recipe (default recipe.yaml)")
    add("--force", action="store_true", help="write over an existing recipe")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="to train on (default auto)")
    add("--rules", action="store_true", help="print the table of rules and stop")
    add("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> int:
    """Look, choose, measure, write the recipe, explain it."""
    from unlabeled.work.start import run

    return run(options)
