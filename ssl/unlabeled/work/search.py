"""The work of `unlabeled search`."""

from __future__ import annotations

import argparse

from rich.console import Console

from unlabeled.errors import UserError
from unlabeled.files import check_writable
from unlabeled.launch.options import check_least
from unlabeled.report import terminal
from unlabeled.search.answers import answers, as_json, how, table, write_page
from unlabeled.search.index import Index
from unlabeled.text import say


def run(args: argparse.Namespace) -> int:
    """Build an index where asked to, then search."""
    check_least(args, k=1)
    check_writable({"--html": args.html})
    if not (args.like or args.build):
        raise UserError("nothing to do: name pictures after --like, or add --build")
    index = Index(args.features, built=not args.build)
    if args.build:
        index.build()
        say(f"{args.features}: an index of {how(index)}")
    if not args.like:
        return 0
    found = answers(index, args.like, args.k, args.encoder)
    if args.html is not None:
        write_page(args.html, found, index, args.encoder)
    if args.json:
        print(as_json(found, index))
        return 0
    terminal.show(Console(), table(found, index))
    if args.html is not None:
        say(f"the page is {args.html}")
    return 0
