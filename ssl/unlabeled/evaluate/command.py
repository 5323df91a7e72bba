"""`python -m unlabeled evaluate`: kNN and linear probes of exported encoders, on all labels or a few."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch

from unlabeled.card import versions
from unlabeled.data.shapes import Shapes
from unlabeled.data.sources import Files
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.pooling import Pixels, Pool
from unlabeled.evaluate.protocol import DataConfig, Evaluation, Splits, measured, runs, scored
from unlabeled.nn.encoder import Encoder
from unlabeled.nn.measures import spectral_rank
from unlabeled.options import checked

if TYPE_CHECKING:
    from rich.table import Table

# raw pixels are compared at most at this side: beyond it they are many and no better
PIXELS_SIDE = 32


class Subject(NamedTuple):
    """One row of the table: an encoder of images of `shape` pixels, on pictures from `data`."""

    name: str
    encoder: Any  # an encoder, or pixels in its place
    shape: tuple[int, int]
    data: DataConfig


class Row(NamedTuple):
    """A subject's scores in percent by name, one per seed, and how many pictures they rest on.

    The effective rank is of the test features (RankMe, Garrido et al. 2023), at most as many as there are dimensions.
    """

    name: str
    shape: tuple[int, int]
    dimensions: int
    train_size: int
    test_size: int
    effective_rank: float
    scores: dict[str, list[float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    parser.add_argument("exports", nargs="+", metavar="EXPORT", help="export folders (runs/NAME/export)")
    parser.add_argument("--data", required=True, help="a folder or tar of labelled pictures, or 'shapes'")
    parser.add_argument("--train", default="train", metavar="PREFIX", help="subfolder to train probes on")
    parser.add_argument("--val", default="val", metavar="PREFIX", help="subfolder to test them on")
    parser.add_argument("--fractions", nargs="+", type=float, default=[1.0], help="shares of the labels")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each share below 1")
    parser.add_argument("--pool", choices=get_args(Pool), default="cls", help="what a picture becomes")
    parser.add_argument("--crop-pct", type=float, default=0.875, help="share of the side that is kept")
    parser.add_argument("--baselines", action="store_true", help="also raw pixels and untrained encoders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and the protocol here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=2, help="processes that load pictures")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the JSON. Returns the exit code.

    Raises:
        UserError: an option, an export or the data cannot be used.
    """
    from rich.console import Console

    config, device = _evaluation(args), _device(args.device)
    console = Console()
    rows = []
    for subject in _subjects(args, device):
        with console.status(f"{subject.name}: features and probes"):
            rows.append(_evaluate(subject, config, device, args))
    console.print(_table(rows, config))
    if args.json is not None:
        report = {"protocol": _protocol(args, config), "rows": [_summary(row) for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _evaluation(args: argparse.Namespace) -> Evaluation:
    if args.seeds < 1 or args.workers < 0:
        raise UserError(f"--seeds {args.seeds} --workers {args.workers}: expected at least 1 seed and 0 workers")
    fractions = tuple(dict.fromkeys(args.fractions))
    return checked(Evaluation, pool=args.pool, crop_pct=args.crop_pct, fractions=fractions)


def _device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name} cannot be used: {reason}. Use --device auto.") from error


def _subjects(args: argparse.Namespace, device: torch.device) -> Iterator[Subject]:
    """Every export, then the baselines they need, each once."""
    from unlabeled.export import load_encoder

    baselines: dict[Hashable, Subject] = {}
    for path in args.exports:
        encoder = load_encoder(path)
        shape, data = encoder.image_size, _data(args, path, encoder)
        yield Subject(path, encoder.to(device), shape, data)
        if args.baselines:
            small = (min(shape[0], PIXELS_SIDE), min(shape[1], PIXELS_SIDE))
            baselines.setdefault((small, data), Subject(f"raw pixels {_times(small)}", Pixels(), small, data))
            name = f"untrained {encoder.model} ({encoder.depth} x {encoder.width})"
            twin = _untrained(encoder).to(device)
            baselines.setdefault((encoder.model, str(encoder.arguments), data), Subject(name, twin, shape, data))
    yield from baselines.values()


def _data(args: argparse.Namespace, path: str, encoder: Encoder) -> DataConfig:
    """The pictures, scaled and normalised as the export was trained."""
    from unlabeled.export import IMAGENET, preprocessing_of

    prepared = preprocessing_of(path) or IMAGENET
    how: dict[str, Any] = {"mean": tuple(prepared.mean), "std": tuple(prepared.std)}
    if args.data == "shapes":
        return checked(Shapes, size=max(encoder.image_size), **how)
    return checked(Files, path=args.data, train=args.train, val=args.val, value_range=prepared.value_range, **how)


def _untrained(encoder: Encoder) -> Encoder:
    """The same architecture with random weights, always the same."""
    from unlabeled.export import untrained

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untrained(encoder.model, encoder.arguments)


def _evaluate(subject: Subject, config: Evaluation, device: torch.device, args: argparse.Namespace) -> Row:
    splits = Splits(config, subject.data, device, args.workers)
    bench = Bench(subject.encoder, splits, subject.shape)
    train, test = bench.features()
    scores: dict[str, list[float]] = {}
    for protocol, fraction in runs(config.protocols, config.fractions):
        # with every label there is nothing to draw
        for seed in range(1 if fraction == 1 else args.seeds):
            for score in measured(protocol, bench.few(fraction, seed)):
                scores.setdefault(scored(score.name, fraction), []).append(score.value)
    return Row(subject.name, subject.shape, train.x.shape[1], len(train.y), len(test.y), spectral_rank(test.x), scores)


def _table(rows: Sequence[Row], config: Evaluation) -> Table:
    from rich.table import Table

    table = Table(title="top-1 accuracy, % (mean ± std over draws of the labels)")
    table.add_column("", overflow="fold")
    columns = [(name, fraction) for fraction in config.fractions for name in ("knn", "linear")]
    for name, fraction in columns:
        heading = f"{'kNN' if name == 'knn' else name}\n{100 * fraction:g} %"
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("effective\nrank", justify="right", no_wrap=True)
    for row in rows:
        rank = f"{row.effective_rank:.0f} of {row.dimensions}"
        table.add_row(row.name, *(_cell(row.scores[scored(*column)]) for column in columns), rank)
    return table


def _cell(scores: Sequence[float]) -> str:
    mean = f"{statistics.mean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ± {statistics.stdev(scores):.1f}"


def _summary(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    scores = {
        name: {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        }
        for name, values in row.scores.items()
    }
    return {**row._asdict(), "scores": scores}


def _protocol(args: argparse.Namespace, config: Evaluation) -> dict[str, Any]:
    """All it takes to repeat the numbers."""
    return {
        "data": args.data,
        "train": args.train,
        "val": args.val,
        "seeds": list(range(args.seeds)),
        "evaluation": config.model_dump(mode="json", exclude={"every"}),
        "versions": versions(),
    }


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
