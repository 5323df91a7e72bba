"""`unlabeled report RUN...`: compare fine-tuned runs, with mean and interval over seeds."""

from __future__ import annotations

import argparse

from unlabeled.paths import user_path

SUMMARY = "fine-tuned runs beside each other: seeds to mean, deviation and interval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    add = parser.add_argument
    add("runs", nargs="+", type=user_path, metavar="RUN", help="folders of finished runs (runs/NAME)")
    repeated = "count runs from other weights as repetitions too: pretrained again, or with another head"
    add("--over-encoders", action="store_true", help=repeated)
    add("--json", type=user_path, metavar="FILE", help="write scores, settings, seeds and costs here")
    add("--markdown", type=user_path, metavar="FILE", help="write the tables here")
    add("--html", type=user_path, metavar="FILE", help="write a page with the tables and the scores as a chart here")


def run(options: argparse.Namespace) -> int:
    """Print the tables, write JSON, Markdown and HTML."""
    from unlabeled.work.report import run

    return run(options)
