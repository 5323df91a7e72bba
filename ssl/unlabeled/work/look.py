"""The work of `unlabeled look`: one page about what an encoder makes of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from unlabeled.errors import UserError
from unlabeled.files import remove, write_text
from unlabeled.launch.given import RECIPE
from unlabeled.launch.options import check_least
from unlabeled.launch.shown import Shown, shown
from unlabeled.look.collect import examples
from unlabeled.look.mapped import Mapped
from unlabeled.look.mapping import mapped
from unlabeled.look.parts import FOLDER, parts
from unlabeled.look.writing import write_attention, write_components, write_map
from unlabeled.report import html, terminal
from unlabeled.report.document import Document, Table, Text
from unlabeled.stages import load_any
from unlabeled.text import say

PAGE = "index.html"


def run(args: argparse.Namespace) -> int:
    """Look, write the page, print what can be printed of it."""
    check_least(args, image_size=1, most=2, queries=0, examples=0, seed=0, workers=0)
    seen = shown(args, load_any)
    say(f"{args.export}: {seen.words}")
    _make_room(args.out)
    refused, found = _draw(args, seen), _map(args, seen)
    document = _document(args, seen.words, found, refused)
    write_text(args.out / PAGE, html.write(document, args.out))
    printed = [part for part in document.parts if not (isinstance(part, Text) and part.kind == "heading")]
    terminal.show(Console(), Document(document.title, printed))
    say(f"the page is {args.out / PAGE}")
    return 0


def _make_room(out: Path) -> None:
    """Remove what an earlier look left. Raises UserError where something else lies there."""
    if (out / RECIPE).exists():
        raise UserError(f"OUT {out} is the folder of a run, which has such a page of its own. Choose another folder.")
    if (out / PAGE).exists() and not (out / FOLDER).is_dir():
        raise UserError(f"OUT {out} holds a page of something else, {PAGE}. Choose another folder.")
    remove(out / FOLDER)


def _draw(args: argparse.Namespace, seen: Shown) -> str:
    """Draw attention and components; returns why there are none, '' where there are."""
    if not args.examples:
        return ""
    chosen = examples(next(iter(seen.sources.values())), args.examples, seen.prepared, args.seed)
    try:
        for draw in (write_attention, write_components):
            draw(args.out / FOLDER, None, seen.encoder, chosen)
    except UserError as error:  # a vector has no positions
        return f"No attention and no components: {error}."
    return ""


def _map(args: argparse.Namespace, seen: Shown) -> Mapped:
    images, thumbs, about = seen.described(args.most, args.seed, args.workers)
    if args.map != "pca":
        say("drawing the map: UMAP, where it is installed, compiles for half a minute; --map pca does not")
    found = mapped(images, args.map, args.seed, args.queries, about)
    write_map(args.out / FOLDER, found, thumbs)
    return found


def _document(args: argparse.Namespace, prepared: str, found: Mapped, refused: str) -> Document:
    facts = [("encoder", f"{args.export}; {prepared}"), ("pictures", found.about), ("map", found.plane)]
    told = [Text(refused)] if refused else []
    return Document(f"A look at {args.export}", [Table.facts(facts), *told, *parts(args.out)])
