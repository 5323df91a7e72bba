"""The work of `unlabeled discover`: features of both sides, runs of k-means, clusters and their page.

OUT/features/labelled, unlabelled    as of `unlabeled embed`
OUT/fits                             notes of runs of k-means, see `unlabeled.discover.fits`
OUT/pictures, clusters.*, discover.html, see `unlabeled.discover.result`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console

from unlabeled.backbone.encoder import Encoder
from unlabeled.data.label.overlap import overlap
from unlabeled.data.opened import Opened
from unlabeled.data.source import SourceConfig
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.table import Config as Table
from unlabeled.discover import estimate
from unlabeled.discover.estimate import Curve
from unlabeled.discover.features import Sides, read, sides
from unlabeled.discover.fits import Fit, Fits, of_classes, of_clusters
from unlabeled.discover.page import brief
from unlabeled.discover.result import PAGE, Asked, write
from unlabeled.errors import UserError
from unlabeled.launch.given import WHOLE
from unlabeled.launch.options import check_least
from unlabeled.processes import claim_together, everywhere, on_main, together
from unlabeled.progress import Clock, duration, task
from unlabeled.report import terminal
from unlabeled.serve.embed import Settings
from unlabeled.sharing.shards import Sharing, each_shard
from unlabeled.text import say
from unlabeled.work.embed import fill, on_accelerator, opened, pictures

SIDES = ("labelled", "unlabelled")
STARTS, STARTS_ON_GPU = 10, 100
SHARED = 0.1  # share of the unlabelled pictures that may be labelled ones without a word
SHARD = 4096  # pictures per file of features
# labelled pictures need their labels, of unlabelled ones none is asked for
OWN: Mapping[str, Mapping[type[SourceConfig], dict[str, Any]]] = {
    "labelled": {Files: {"stray": "keep"}, Table: {"split": None}},
    "unlabelled": WHOLE,
}


def run(args: argparse.Namespace) -> int:
    """Encode both sides, cluster, write the clusters and a page."""
    check_least(args, batch_size=1, size=1, workers=0, starts=1, seed=0, most=1)
    args.classes = _number(args.classes)
    return on_accelerator(args, _discover)


def _number(text: str) -> int | None:
    """The number of classes that is asked for; None = auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--classes {text}: expected a number of at least 1, or auto")
    return int(text)


class Looked(NamedTuple):
    """The images of both sides, and how many unlabelled ones are labelled too, in words; '' = few."""

    data: dict[str, Opened]
    shared: str


def _discover(args: argparse.Namespace, accelerator: Accelerator) -> None:
    clock = Clock()
    lock = claim_together(accelerator, args.out, "OUT")
    own = {side: _side(args, side) for side in SIDES}
    with together():
        for one in own.values():
            one.out.mkdir(parents=True, exist_ok=True)
        encoder, how, settings = opened(own["labelled"], accelerator.is_main_process)
        data = {side: pictures(own[side], how, accelerator.is_main_process, OWN[side]) for side in SIDES}
    looked = _look(args, accelerator, data)
    found = _features(own, accelerator, encoder, settings, looked)
    fits = Fits(found, args.seed, args.out / "fits")
    on_main(accelerator, lambda: fits.claim(_digests(own)))
    curve = _curve(args, accelerator, fits)
    k = args.classes if curve is None else curve.best
    starts = args.starts or (STARTS_ON_GPU if accelerator.device.type == "cuda" else STARTS)
    _each(accelerator, fits, of_clusters(k, starts), "k-means")
    asked = Asked(args.export, args.labelled, args.unlabelled, k, starts, looked.shared, _digests(own))
    report = on_main(accelerator, lambda: write(args.out, asked, fits, looked.data["unlabelled"].train, curve))
    if report is not None:
        terminal.show(Console(), brief(report))
        say(f"done in {duration(clock.seconds)}: the page is {args.out / PAGE}")
    if lock:
        lock.close()


def _side(args: argparse.Namespace, side: str) -> argparse.Namespace:
    """The options of `unlabeled embed` for one side."""
    fixed = {"split": "train", "prefix": "", "tokens": False, "dtype": "float32", "format": "safetensors"}
    place = {"data": getattr(args, side), "out": args.out / "features" / side}
    return argparse.Namespace(**{**vars(args), **fixed, **place, "shard": SHARD, "engine": "processes"})


def _look(args: argparse.Namespace, accelerator: Accelerator, data: dict[str, Opened]) -> Looked:
    """Find the images of both sides, and refuse what cannot be clustered before anything is encoded."""

    def check() -> str:
        labelled, unlabelled = (data[side].train for side in SIDES)
        for side in SIDES:
            if splits := data[side].config.read_as_one(data[side].train):
                path = getattr(args, side)
                raise UserError(
                    f"--{side} {path} has the folders {' and '.join(splits)}, which are splits and no classes. Name "
                    f"one of them: --{side} {path}/{splits[0]}"
                )
        known = len({*labelled.labels[labelled.labels >= 0].tolist()})
        _check_known(args, known, len(unlabelled))
        shared = overlap(labelled, unlabelled)
        if shared.share <= SHARED:
            return ""
        return f"{len(shared.found):,} of {shared.looked:,} that were looked at are labelled too: scores flatter"

    shared = everywhere(accelerator, check)
    if shared and accelerator.is_main_process:
        say(f"unlabelled pictures: {shared}")
    return Looked(data, shared)


def _check_known(args: argparse.Namespace, known: int, unlabelled: int) -> None:
    """Raise UserError where the numbers of known classes, pictures and clusters do not fit."""
    if not known:
        raise UserError(
            f"--labelled {args.labelled} has no picture with a class; expected a folder for each known class. Without "
            "known classes, `unlabeled look` shows clusters."
        )
    if args.classes is not None and args.classes < known:
        raise UserError(
            f"--classes {args.classes}: {args.labelled} alone has {known} classes, which count too. Ask for {known} or "
            "more."
        )
    if args.classes is None and known < estimate.LEAST:
        raise UserError(
            f"--classes auto holds half of the known classes out, and there are {known}; expected at least "
            f"{estimate.LEAST}. Say how many classes there are: --classes N."
        )
    if args.most is not None and (args.classes is not None or args.most <= known):
        raise UserError(
            f"--most {args.most}: expected with --classes auto, and more than the {known} known classes. Leave it out."
        )
    if (most := args.classes or args.most or known) - known > unlabelled:
        raise UserError(
            f"{most} classes, {most - known} of them new, and {unlabelled} unlabelled pictures: expected no more new "
            "classes than pictures. Ask for fewer."
        )


def _features(
    own: Mapping[str, argparse.Namespace],
    accelerator: Accelerator,
    encoder: Encoder,
    settings: Settings,
    looked: Looked,
) -> Sides:
    """The features of both sides, encoded where they are missing, on the device if it computes in float64."""
    for side in SIDES:
        fill(own[side], accelerator, encoder, settings, looked.data[side])
    device = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
    with together():
        both = [read(own[side].out) for side in SIDES]
        return sides(*(one._replace(x=one.x.to(device)) for one in both))


def _digests(own: Mapping[str, argparse.Namespace]) -> dict[str, Any]:
    """What the features are of, as their manifests say."""
    return {side: json.loads((own[side].out / "manifest.json").read_bytes())["asked"] for side in SIDES}


def _curve(args: argparse.Namespace, accelerator: Accelerator, fits: Fits) -> Curve | None:
    """The accuracies by number of clusters; None where the number was given."""
    if args.classes is not None:
        return None
    known, pictures = fits.sides.known, len(fits.sides.unlabelled.names)
    most = min(args.most or 3 * known + 20, known + pictures)
    numbers = estimate.grid(known, most)
    _each(accelerator, fits, of_classes(numbers), "number of classes")
    more = estimate.around(numbers, everywhere(accelerator, lambda: fits.curve(numbers).best))
    _each(accelerator, fits, of_classes(more), "number of classes, around the best")
    return everywhere(accelerator, lambda: fits.curve([*numbers, *more]))


def _each(accelerator: Accelerator, fits: Fits, runs: Sequence[Fit], what: str) -> None:
    """Make runs of k-means that have no note, shared among the processes."""
    missing = everywhere(accelerator, lambda: fits.missing(runs))
    shown = task(what, len(missing))
    for _ in each_shard(missing, lambda places: fits.run(runs, places), Sharing(1, accelerator)):
        shown.advance(accelerator.num_processes)
    shown.close()
