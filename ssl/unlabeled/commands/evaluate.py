"""`python -m unlabeled evaluate`: protocols on frozen features of exported encoders, on all labels or a few."""

from __future__ import annotations

import argparse
import json
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from pydantic import BaseModel, create_model

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Pixels, Pool
from unlabeled.data.label.subset import stratified
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.evaluate.baselines import ACCURACY, majority, verdict
from unlabeled.evaluate.baselines import summary as gained
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, Splits, measured, runs
from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.protocols import PROTOCOLS
from unlabeled.evaluate.results import Column, Result, Row, document, table, with_recalls
from unlabeled.files import check_writable, write_text
from unlabeled.launch.given import GIVEN, given
from unlabeled.launch.options import checked
from unlabeled.nn.measures import spectral_rank
from unlabeled.paths import expand, user_path
from unlabeled.progress import duration, track
from unlabeled.recipe import parse
from unlabeled.report.card import versions
from unlabeled.report.clock import Clock
from unlabeled.text import plain, say

if TYPE_CHECKING:
    from unlabeled.backbone.folder import Preprocessing
    from unlabeled.backbone.preparation import Prepared

# raw pixels are compared at most at this side: beyond it they are many and no better
PIXELS_SIDE = 32
DEFAULT = ("knn", "linear")
CHEAP = 600.0  # seconds that baselines may take unasked
OF_DATA = "data."  # how settings of the pictures begin


class Subject(NamedTuple):
    """One row of the table: an encoder of images of `shape` pixels, or pixels in its place, on pictures from `data`,
    prepared as `config` says."""

    name: str
    encoder: Any
    shape: tuple[int, int]
    data: Opened
    config: Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    parser.add_argument("exports", nargs="+", type=expand, metavar="EXPORT", help="export folders (runs/NAME/export)")
    parser.add_argument("--data", type=expand, required=True, help=f"labelled pictures: {GIVEN}")
    parser.add_argument("--train", metavar="SPLIT", help="subfolder or split to train probes on; default: train")
    parser.add_argument("--val", metavar="SPLIT", help="subfolder or split to test them on; default: val")
    parser.add_argument("--allow-overlap", action="store_true", help="test pictures may be training pictures too")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=list(PROTOCOLS),
        default=list(DEFAULT),
        metavar="NAME",
        help=f"of {', '.join(PROTOCOLS)} (default {' '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="settings of protocols, such as linear.epochs=50 linear.blocks=[1,4] knn.k=[10,20,100,200], and of the "
        "pictures, such as data.label=species",
    )
    parser.add_argument(
        "--against", type=expand, metavar="EXPORT", help="another export, for cka to compare each one with"
    )
    parser.add_argument("--fractions", nargs="+", type=float, default=[1.0], help="shares of the labels")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each share below 1")
    parser.add_argument("--pool", choices=get_args(Pool), help="how tokens become one vector; default: as exported")
    parser.add_argument(
        "--image-size", type=int, metavar="SIDE", help="other than the export's; positions are resampled"
    )
    parser.add_argument("--crop-pct", type=float, help="share of the side that is kept; default: as exported")
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        help="the most frequent class, raw pixels and the untrained network; unless told, the last two only where they "
        f"take less than {duration(CHEAP)}",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the results and the protocol here")
    parser.add_argument("--markdown", type=user_path, metavar="FILE", help="write the table here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=2, help="processes that load pictures")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write JSON and Markdown. Returns the exit code.

    Raises:
        UserError: an option, an export or the data cannot be used.
    """
    from rich.console import Console

    config, protocols, device = _evaluation(args), settings(args.protocol, _changes(args)), device_of(args.device)
    check_writable({"--json": args.json, "--markdown": args.markdown})
    console, clock = Console(), Clock()
    subjects = _subjects(args, config, device)
    shown = track(subjects, "encoders", len(subjects))
    rows = [_evaluate(subject, protocols, device, args) for subject in shown]
    baselines = _baselines(args, subjects, rows, protocols, device)
    say(f"took {duration(clock.seconds)}")
    verdicts = [text for row in rows if (text := verdict(row, baselines))]
    console.print(table([*rows, *baselines], protocols))
    if args.json is not None:
        told = {row.name: gained(row, baselines) for row in rows} if baselines else {}
        results = [row.summary() for row in (*rows, *baselines)]
        report = {"protocol": _protocol(args, config, protocols), "rows": results, "over_baselines": told}
        write_text(args.json, json.dumps(report, indent=2) + "\n")
    if args.markdown is not None:
        write_text(args.markdown, document([*rows, *baselines], protocols, verdicts))
    for text in verdicts:
        console.print(plain(text), markup=False, soft_wrap=True)
    return 0


def settings(names: Sequence[str], changes: Sequence[str]) -> list[Protocol]:
    """Protocols by name, with their settings changed by `NAME.FIELD=VALUE`.

    Raises:
        UserError: there is no such field of a protocol that is run, or its value does not fit.
    """
    for change in changes:
        if (name := change.partition(".")[0]) in PROTOCOLS and name not in names:
            raise UserError(f"--set {change}: {name} is not run. Add it to --protocol, or leave this out.")
    fields: Any = {name: (PROTOCOLS[name], PROTOCOLS[name]()) for name in dict.fromkeys(names)}
    schema = create_model("Settings", __base__=_Settings, **fields)
    parsed = parse(schema, "{}", changes, where="--set")
    return [getattr(parsed, name) for name in fields]


def _changes(args: argparse.Namespace) -> list[str]:
    """What `--set` says of protocols, and the options that are short for settings."""
    changes = [change for change in args.set if not change.startswith(OF_DATA)]
    if args.against is not None:
        if "cka" not in args.protocol:
            raise UserError(f"--against {args.against} is what cka compares with. Add cka to --protocol.")
        changes.append(f"cka.against={json.dumps(args.against)}")
    return changes


class _Settings(BaseModel, frozen=True, extra="forbid"):
    """What `--set` may change."""


def _evaluation(args: argparse.Namespace) -> Evaluation:
    if args.seeds < 1 or args.workers < 0:
        raise UserError(f"--seeds {args.seeds} --workers {args.workers}: expected at least 1 seed and 0 workers")
    fractions = tuple(dict.fromkeys(args.fractions))
    told = {} if args.crop_pct is None else {"crop_pct": args.crop_pct}
    return checked(Evaluation, pool=args.pool, fractions=fractions, knn=None, linear=None, **told)


def device_of(name: str) -> torch.device:
    """The device of `--device`. Raises UserError when it is not there."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name} cannot be used: {reason}. Use --device auto.") from error


def _subjects(args: argparse.Namespace, asked: Evaluation, device: torch.device) -> list[Subject]:
    """Every export, prepared as it says or as was asked for."""
    subjects: list[Subject] = []
    for path in args.exports:
        encoder, how, words = _load(path, args)
        say(f"{path}: {words}")
        data, config = data_of(args, how), prepared_as(asked, how)
        data = next((other.data for other in subjects if other.data.config == data.config), data)
        subjects.append(Subject(path, encoder.to(device), encoder.image_size, data, config))
    return subjects


def _baselines(
    args: argparse.Namespace,
    subjects: Sequence[Subject],
    rows: Sequence[Row],
    protocols: Sequence[Protocol],
    device: torch.device,
) -> list[Row]:
    """What the encoders must be better than, each once, with a word about what it costs."""
    if args.baselines is False:
        return []
    rivals = list(_rivals(args, subjects, device))
    about = sum(row.cost["seconds"] for row in rows) * len(rivals) / len(rows)
    words = f"{', '.join(rival.name for rival in rivals)}: about {duration(about)}"
    if args.baselines is None and about > CHEAP:
        say(f"baselines left out, {words}; --baselines adds them")
        rivals = []
    else:
        say(f"baselines, {words}; --no-baselines leaves them out")
    found = [_evaluate(rival, protocols, device, args) for rival in track(rivals, "baselines", len(rivals))]
    if any(protocol.unit == ACCURACY for protocol in protocols):
        subject = subjects[0]
        splits = Splits(subject.config, subject.data, device, args.workers, labels=True)
        found.append(majority(splits, rows[0], protocols))
    return found


def _rivals(args: argparse.Namespace, subjects: Sequence[Subject], device: torch.device) -> Iterator[Subject]:
    """Raw pixels, then untrained twins of the encoders, each once."""
    pixels: dict[Hashable, Subject] = {}
    twins: dict[Hashable, Subject] = {}
    for _, encoder, shape, data, config in subjects:
        small = (min(shape[0], PIXELS_SIDE), min(shape[1], PIXELS_SIDE))
        if any(PROTOCOLS[name].pixels for name in args.protocol):
            rival = Subject(f"raw pixels {_times(small)}", Pixels(), small, data, config)
            pixels.setdefault((small, data, config), rival)
        name, key = f"untrained {encoder.model} ({encoder.depth} x {encoder.width})", str(encoder.arguments)
        twin = Subject(name, untrained_twin(encoder).to(device), shape, data, config)
        twins.setdefault((encoder.model, key, data, config), twin)
    yield from pixels.values()
    yield from twins.values()


def _load(path: str, args: argparse.Namespace) -> Prepared:
    """An exported encoder, for square images of another side where one is given."""
    from unlabeled.backbone.preparation import prepare

    if (side := args.image_size) is not None and side < 1:
        raise UserError(f"--image-size {side}: expected at least 1 pixel")
    prepared = prepare(path, side, crop_pct=args.crop_pct, pool=args.pool)
    check_side(prepared.encoder, "--image-size", side)
    return prepared


def prepared_as(asked: Evaluation, how: Preprocessing) -> Evaluation:
    """An evaluation of features that are made as `how` says."""
    fields = {name: getattr(asked, name) for name in Evaluation.model_fields}
    return checked(
        Evaluation, **{**fields, "pool": how.pool, "crop_pct": how.crop_pct, "interpolation": how.interpolation}
    )


def check_side(encoder: Encoder, option: str, side: int | None) -> None:
    """Raise UserError when an encoder that was loaded for squares of `side` pixels, as `option` says, sees others."""
    if side is None or encoder.image_size == (side, side):
        return
    patch = encoder.patch_size
    near = max(patch, side // patch * patch)
    raise UserError(
        f"{option} {side}: {encoder.model} has patches of {patch} pixels, which do not divide it. Use {near} or "
        f"{near + patch}."
    )


def data_of(args: argparse.Namespace, how: Preprocessing) -> Opened:
    """The pictures, scaled and normalised as the export was trained."""
    changes = [change for change in args.set if change.startswith(OF_DATA)]
    if args.allow_overlap:
        changes.append("data.allow_overlap=true")
    data = given(args.data, how, {"train": args.train, "val": args.val}, changes)
    if not data.has_val:
        raise UserError(f"{args.data} has no pictures to test on: data.val is null, expected {data.what_val_is}")
    return Opened(data)


def untrained_twin(encoder: Encoder) -> Encoder:
    """The same architecture with random weights, always the same."""
    from unlabeled.backbone.build import untrained

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untrained(encoder.model, encoder.arguments)


def _evaluate(
    subject: Subject,
    protocols: Sequence[Protocol],
    device: torch.device,
    args: argparse.Namespace,
) -> Row:
    config = subject.config
    labels = any(protocol.labels for protocol in protocols)
    splits = Splits(config, subject.data, device, args.workers, labels=labels)
    bench = Bench(subject.encoder, splits, subject.shape)
    # of pixels there is nothing to see but features
    protocols = [protocol for protocol in protocols if protocol.pixels or not isinstance(subject.encoder, Pixels)]
    clock = Clock()
    bench.prepare([FeatureSpec(bench.pool), *(kind for protocol in protocols for kind in protocol.wants(bench))])
    encoding = clock.seconds
    scores = _scores(bench, protocols, config.fractions, args.seeds)
    cost = {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    train, test = bench.features()
    return Row(
        subject.name,
        subject.shape,
        train.x.shape[1],
        len(train.y),
        len(test.y),
        spectral_rank(test.x),
        {name: source.fingerprint() for name, source in zip(("train", "val"), splits.sources, strict=True)},
        scores,
        {**cost, "pictures_per_second": (len(train.y) + len(test.y)) / max(encoding, 1e-9)},
    )


def _scores(
    bench: Bench, protocols: Sequence[Protocol], fractions: Sequence[float], seeds: int
) -> dict[Column, Result]:
    labels, names = bench.features()[0].y.cpu().numpy(), bench.splits.sources[0].classes
    scores: dict[Column, Result] = {}
    for protocol, fraction in runs(protocols, fractions):
        # with every label there is nothing to draw
        for seed in range(1 if fraction == 1 else seeds):
            size = len(stratified(labels, fraction, seed, names=names)) if protocol.few_labels else None
            for score in measured(protocol, bench.few(fraction, seed)):
                if protocol.unit == ACCURACY and score.each is not None:
                    score = with_recalls(score, bench.features()[1].y.cpu().numpy(), names)
                column = Column(score.name, fraction if protocol.few_labels else None)
                scores.setdefault(column, Result(size)).found.append(score)
    return scores


def _protocol(args: argparse.Namespace, config: Evaluation, protocols: Sequence[Protocol]) -> dict[str, Any]:
    """All it takes to repeat the numbers."""
    preparation = config.model_dump(mode="json", exclude={"every", *PROTOCOLS})
    return {
        "data": args.data,
        "train": args.train,
        "val": args.val,
        "seeds": list(range(args.seeds)),
        "image_size": args.image_size,
        "protocols": {protocol.protocol: protocol.version for protocol in protocols},
        "evaluation": {**preparation, **{one.protocol: one.model_dump(mode="json") for one in protocols}},
        "versions": versions(),
    }


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
