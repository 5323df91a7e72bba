"""The work of `unlabeled evaluate`: protocols on frozen features, baselines, tables and pages."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from unlabeled.backbone.weights import prepare
from unlabeled.data.source import SourceConfig
from unlabeled.environment import versions
from unlabeled.errors import UserError
from unlabeled.evaluate.baselines import summary, verdict
from unlabeled.evaluate.comparison import Comparison, Subject, opened_once, prepared_as, protocols_of, rivals
from unlabeled.evaluate.evaluation import Evaluation, told
from unlabeled.evaluate.results import EncoderScores, brief, full
from unlabeled.evaluate.splits import Preparation
from unlabeled.files import check_writable, write_text
from unlabeled.launch.given import OF_DATA, data_of
from unlabeled.launch.options import check_side, checked, device_of
from unlabeled.progress import Clock, duration, track
from unlabeled.report import as_json, html, markdown, terminal
from unlabeled.stages import load_any
from unlabeled.text import say

CHEAP = 600.0  # seconds that baselines may take unasked


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write JSON, Markdown and HTML."""
    from rich.console import Console

    asked, protocols = _evaluation(args), protocols_of(args.protocol, _changes(args))
    comparison = Comparison(protocols, asked.fractions, args.seeds, device_of(args.device), args.workers)
    check_writable({"--json": args.json, "--markdown": args.markdown, "--html": args.html})
    console, clock = Console(), Clock()
    subjects = _subjects(args, comparison.device)
    rows = [comparison.row(subject) for subject in track(subjects, "encoders", len(subjects))]
    baselines = _baselines(args, comparison, subjects, rows)
    say(f"took {duration(clock.seconds)}")
    verdicts = [text for row in rows if (text := verdict(row, baselines))]
    everything = [*rows, *baselines]
    terminal.show(console, brief(everything, protocols, verdicts))
    over = {row.name: summary(row, baselines) for row in rows} if baselines else {}
    about = _protocol(args, asked, comparison, subjects[0].data.config)
    data = {"protocol": about, "rows": [row.summary() for row in everything], "over_baselines": over}
    found = full(everything, protocols, verdicts, data)
    for file, writer in ((args.json, as_json), (args.markdown, markdown)):
        if file is not None:
            write_text(file, writer.write(found))
    if args.html is not None:
        write_text(args.html, html.write(found._replace(title=f"evaluate {args.data}"), args.html.parent))
    return 0


def _changes(args: argparse.Namespace) -> list[str]:
    """Settings of protocols from `--set`, and from options that are short for them."""
    changes = [change for change in args.set if not change.startswith(OF_DATA)]
    for option, value, field, what in (
        ("--against", args.against, "cka.against", "is what cka compares with"),
        ("--unknown", args.unknown, "openset.unknown", "holds what openset takes for unknown"),
    ):
        if value is not None:
            if (protocol := field.partition(".")[0]) not in args.protocol:
                raise UserError(f"{option} {value} {what}. Add {protocol} to --protocol.")
            changes.append(f"{field}={json.dumps(value)}")
    return changes


def _evaluation(args: argparse.Namespace) -> Evaluation:
    """Preparation and shares of labels from the options. Raises UserError when one does not fit."""
    if args.seeds < 1 or args.workers < 0:
        raise UserError(f"--seeds {args.seeds} --workers {args.workers}: expected at least 1 seed and 0 workers")
    crop = {} if args.crop_pct is None else {"crop_pct": args.crop_pct}
    return checked(Evaluation, pool=args.pool, fractions=tuple(dict.fromkeys(args.fractions)), **crop)


def _subjects(args: argparse.Namespace, device: torch.device) -> list[Subject]:
    """Every export with its own preparation, or that of the options."""
    if (side := args.image_size) is not None and side < 1:
        raise UserError(f"--image-size {side}: expected at least 1 pixel")
    subjects: list[Subject] = []
    for path in args.exports:
        encoder, how, words = prepare(path, side, crop_pct=args.crop_pct, pool=args.pool)
        check_side(encoder, "--image-size", side)
        say(f"{path}: {words}")
        data = opened_once(data_of(args, load_any, how), subjects)
        subjects.append(Subject(path, encoder.to(device), encoder.image_size, data, prepared_as(how)))
    return subjects


def _baselines(
    args: argparse.Namespace, comparison: Comparison, subjects: Sequence[Subject], rows: Sequence[EncoderScores]
) -> list[EncoderScores]:
    """Scores of the baselines, each once; says their cost first."""
    if args.baselines is False:
        return []
    others = list(rivals(subjects, comparison.protocols, comparison.device))
    about = sum(row.cost["seconds"] for row in rows) * len(others) / len(rows)
    words = f"{', '.join(rival.name for rival in others)}: about {duration(about)}"
    if args.baselines is None and about > CHEAP:
        say(f"baselines left out, {words}; --baselines adds them")
        others = []
    else:
        say(f"baselines, {words}; --no-baselines leaves them out")
    found = [comparison.row(rival) for rival in track(others, "baselines", len(others))]
    guessed = comparison.most_frequent_class(subjects[0], rows[0])
    return [*found, guessed] if guessed else found


def _protocol(
    args: argparse.Namespace, asked: Evaluation, comparison: Comparison, config: SourceConfig
) -> dict[str, Any]:
    """Everything needed to repeat the numbers."""
    share = config.share
    protocols = comparison.protocols
    settings = {name: told(name, protocol.model_dump(mode="json")) for name, protocol in protocols.items()}
    return {
        "data": args.data,
        "train": args.train,
        "val": args.val,
        **({} if share is None else {"held_out": {"share": share, "seed": config.split_seed}}),
        "seeds": list(range(args.seeds)),
        "image_size": args.image_size,
        "protocols": {name: protocol.version for name, protocol in protocols.items()},
        "evaluation": {**asked.model_dump(mode="json", include={*Preparation.model_fields, "fractions"}), **settings},
        "versions": versions(),
    }
