"""The work of `unlabeled neighbours`: for every picture its nearest, near-duplicates, and likely wrong labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unlabeled.errors import UserError
from unlabeled.files import write_text
from unlabeled.launch.given import RECIPE
from unlabeled.launch.options import check_least
from unlabeled.launch.shown import shown
from unlabeled.look.thumbnails import Thumbs, write_sheet
from unlabeled.report import html, terminal
from unlabeled.report.visuals import Sheet
from unlabeled.search.survey import COPIES, NEAR, Survey, page, survey, write_tables
from unlabeled.stages import load_any
from unlabeled.text import say

PAGE, SHEET = "index.html", "pictures.jpg"


def run(args: argparse.Namespace) -> int:
    """Encode, find, write the tables and the page."""
    check_least(args, k=1, most=2, seed=0, workers=0, image_size=1)
    if not 0 < args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold:g}: expected a cosine above 0 and at most 1")
    if (args.out / RECIPE).exists():
        raise UserError(f"OUT {args.out} is the folder of a run. Choose another folder.")
    seen = shown(args, load_any)
    images, thumbs, about = seen.described(args.most, args.seed, args.workers)
    found = survey(images, args.k, args.threshold)
    facts = [
        ("encoder", f"{args.export}; {seen.words}"),
        ("pictures", about),
        ("left out", f"{images.left_out:,} that cannot be used"),
        ("tables", f"{NEAR}: the {found.near.numbers.shape[1]} nearest of each"),
        ("", f"{COPIES}: pictures with a cosine of at least {args.threshold:g}"),
    ]
    _write(args.out, found, thumbs, facts)
    return 0


def _write(out: Path, found: Survey, thumbs: Thumbs, facts: Sequence[tuple[str, str]]) -> None:
    """Write tables, thumbnails and page; print what can be printed of it. Raises UserError when they cannot be."""
    sheet = Sheet(SHEET, int(thumbs.images.shape[-1]), thumbs.columns, len(thumbs.images))
    try:
        write_tables(found, out)
        write_sheet(out / SHEET, thumbs)
        document = page(found, sheet, facts)
        write_text(out / PAGE, html.write(document, out))
    except OSError as error:
        raise UserError(f"OUT {out} cannot be written: {error.strerror or error}. Choose another folder.") from error
    terminal.show(Console(), document)
    say(f"the page is {out / PAGE}")
