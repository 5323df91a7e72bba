"""`python -m unlabeled report RUN...`: fine-tuned runs beside each other, seeds to mean and interval."""

from __future__ import annotations

import argparse
import json

from unlabeled.files import check_writable, write_text
from unlabeled.paths import user_path
from unlabeled.report.several import document, grouped, read
from unlabeled.text import plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="folders of finished runs (runs/NAME)")
    parser.add_argument(
        "--over-encoders",
        action="store_true",
        help="runs from different weights are repetitions too: pretrained again, or re-trained heads",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write scores, settings, seeds and costs here")
    parser.add_argument("--markdown", type=user_path, metavar="FILE", help="write the tables here")


def run(args: argparse.Namespace) -> int:
    """Print the tables, write JSON and Markdown. Returns the exit code.

    Raises:
        UserError: a run has no result, or results cannot be compared.
    """
    check_writable({"--json": args.json, "--markdown": args.markdown})
    rows = grouped([read(path) for path in args.runs], args.over_encoders)
    text = document(rows)
    print(plain(text), end="")
    summary = {"rows": [row.summary() for row in rows]}
    for file, content in ((args.json, json.dumps(summary, indent=2) + "\n"), (args.markdown, text)):
        if file is not None:
            write_text(file, content)
    return 0
