"""`unlabeled report RUN...`: compare fine-tuned runs, with mean and interval over seeds."""

from __future__ import annotations

import argparse
from functools import partial

from unlabeled.files import check_writable, write_text
from unlabeled.paths import user_path
from unlabeled.recipe.free import is_free
from unlabeled.report import as_json, html, markdown
from unlabeled.report.several import comparison, grouped, read_run
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.text import plain

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


def run(args: argparse.Namespace) -> int:
    """Print the tables, write JSON, Markdown and HTML."""
    check_writable({"--json": args.json, "--markdown": args.markdown, "--html": args.html})
    free = partial(is_free, FinetuneRecipe)
    runs = [read_run(path, free) for path in args.runs]
    found = comparison(grouped(runs, args.over_encoders))
    text = markdown.write(found)
    print(plain(text), end="")
    for file, content in ((args.json, as_json.write(found)), (args.markdown, text)):
        if file is not None:
            write_text(file, content)
    if args.html is not None:
        write_text(args.html, html.write(found._replace(title="fine-tuned runs"), args.html.parent))
    return 0
