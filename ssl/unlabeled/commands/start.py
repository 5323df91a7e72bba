"""`unlabeled start PICTURES`: its options."""

from __future__ import annotations

import argparse
import os

from unlabeled.data.archive.paths import entries
from unlabeled.errors import UserError
from unlabeled.files import check_writable
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
    if not options.rules:
        _check(options)
    from unlabeled.work.start import run

    return run(options)


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for what the options alone show to be wrong, before torch is imported."""
    if options.pictures is None:
        raise UserError("unlabeled start PICTURES: name a folder of pictures, a tar, a glob of tars or a table")
    for path in filter(None, (options.pictures, options.labels)):
        entries([path])
    if not 1 <= options.minutes <= 1e6:
        raise UserError(f"--minutes {options.minutes:g}: expected at least 1")
    if options.out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {options.out}: expected a name that ends in .yaml")
    if os.path.lexists(options.out) and not options.force and not options.out.is_dir():
        raise UserError(
            f"{options.out} exists, and may be yours. Add --force to write over it, or name another: --out FILE.yaml"
        )
    check_writable({"--out": options.out})
