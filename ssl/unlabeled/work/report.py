"""The work of `unlabeled report`: runs beside each other."""

from __future__ import annotations

import argparse
from functools import partial

from unlabeled.files import check_writable, write_text
from unlabeled.recipe.free import is_free
from unlabeled.report import as_json, html, markdown
from unlabeled.report.several import comparison, grouped, read_run
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.text import plain


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
