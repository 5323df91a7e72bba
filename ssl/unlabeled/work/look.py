"""The work of `unlabeled look`: one page about what an encoder makes of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import Pool, encoder_features
from unlabeled.backbone.weights import prepare
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluate.features import WORKER_TIMEOUT
from unlabeled.evaluate.splits import Preparation
from unlabeled.files import remove, write_text
from unlabeled.launch.given import RECIPE, WHOLE, given, splits_of
from unlabeled.launch.options import check_least, check_side, checked, device_of
from unlabeled.look.collect import Prepared, choose, describe, examples
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
    encoder, how, words = prepare(args.export, args.image_size, crop_pct=args.crop_pct, pool=args.pool)
    check_side(encoder, "--image-size", args.image_size)
    asked = checked(Preparation, pool=how.pool, crop_pct=how.crop_pct, interpolation=how.interpolation)
    say(f"{args.export}: {words}")
    encoder = encoder.to(device := device_of(args.device)).eval()
    sources, config = splits_of(
        args.pictures,
        args.split,
        args.overrides,
        lambda splits: given(args.pictures, load_any, how, splits, args.overrides, WHOLE),
    )
    _make_room(args.out)
    normalize = Normalize(config.mean, config.std, device)
    prepared = Prepared(encoder.image_size, asked.crop_pct, asked.interpolation, normalize, device)
    refused = _draw(args, encoder, sources, prepared)
    found = _map(args, encoder, sources, prepared, how.pool or encoder.default_pool)
    document = _document(args, words, found, refused)
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


def _draw(args: argparse.Namespace, encoder: Encoder, sources: Mapping[str, Source], how: Prepared) -> str:
    """Draw attention and components; returns why there are none, '' where there are."""
    if not args.examples:
        return ""
    shown = examples(next(iter(sources.values())), args.examples, how, args.seed)
    try:
        for draw in (write_attention, write_components):
            draw(args.out / FOLDER, None, encoder, shown)
    except UserError as error:  # a vector has no positions
        return f"No attention and no components: {error}."
    return ""


def _map(
    args: argparse.Namespace, encoder: Encoder, sources: Mapping[str, Source], how: Prepared, pool: Pool
) -> Mapped:
    chosen = choose(sources, args.most, args.seed)
    images, thumbs = describe(encoder_features(encoder, pool), sources, chosen, how, args.workers, WORKER_TIMEOUT)
    everything = sum(map(len, sources.values()))
    about = f"{len(images.names):,} of {everything:,} pictures of {args.pictures}"
    found = mapped(images, args.map, args.seed, args.queries, about)
    write_map(args.out / FOLDER, found, thumbs)
    return found


def _document(args: argparse.Namespace, prepared: str, found: Mapped, refused: str) -> Document:
    facts = [("encoder", f"{args.export}; {prepared}"), ("pictures", found.about), ("map", found.plane)]
    told = [Text(refused)] if refused else []
    return Document(f"A look at {args.export}", [Table.facts(facts), *told, *parts(args.out)])
