"""The work of `unlabeled doctor`: look, measure, print."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from unlabeled.accelerator import make_accelerator
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.doctor.compared import Compared, compare
from unlabeled.doctor.facts import Facts, copy_facts, speed_facts, split_facts
from unlabeled.doctor.fits import Set, fitting
from unlabeled.doctor.page import page
from unlabeled.doctor.pictures import Survey, survey
from unlabeled.doctor.speed import expect, measure
from unlabeled.doctor.tables import check_split, write_copies, write_split
from unlabeled.doctor.verdict import findings
from unlabeled.errors import UserError
from unlabeled.files import check_writable, write_text
from unlabeled.launch.stage import Stage
from unlabeled.progress import task
from unlabeled.report import as_json, html, terminal
from unlabeled.signals import EXIT_BAD_INPUT, EXIT_DONE
from unlabeled.stages import load_any, stage_of
from unlabeled.text import one_line
from unlabeled.train.job import Job
from unlabeled.train.recipe import ELSEWHERE, Recipe

T = TypeVar("T")


def run(args: argparse.Namespace) -> int:
    """Look, measure, print. Returns 2 where a run would fail or be spoiled."""
    if args.pictures < 1 or not 0 < args.seconds < 3600:
        raise UserError(f"--pictures {args.pictures} --seconds {args.seconds}: expected at least 1, and up to an hour")
    if not args.hours > 0:
        raise UserError(f"--hours {args.hours:g}: expected more than 0")
    check_split(args)
    check_writable({"--csv": args.csv, "--split": args.split, "--html": args.html})
    stage, recipe = stage_of(args.recipe, args.overrides)
    recipe, _ = stage.complete(recipe)
    data = Opened(recipe.data, IndexFolder(Path(recipe.output) / "index", write=False))
    # a split is of all pictures
    most = None if args.full or args.split else args.pictures
    with warnings.catch_warnings():
        warnings.simplefilter("once", append=True)
        facts, compared = examine(stage, recipe, data, most, args.seconds)
        facts["time_limit"] = time_limit(args, recipe, partial(stage.job, data=data), facts["speed"])
    written = write_tables(args, recipe, compared)
    found = findings(recipe, facts)
    shown = page(recipe, facts, found)
    if args.html is not None:
        write_text(args.html, html.write(shown, args.html.parent))
    if args.json:
        print(as_json.write(shown), end="")
    else:
        terminal.show(Console(), shown)
        print("".join(f"\n{one_line(line)}" for line in written), end="\n" if written else "")
    return EXIT_BAD_INPUT if any(finding.severity == "stop" for finding in found) else EXIT_DONE


def time_limit(args: argparse.Namespace, recipe: Recipe, set_up: Set, speed: Facts | None) -> Facts:
    """How long a run may take, and what would be done in time where it would take longer."""
    limit: Facts = {"hours": args.hours, "fits": []}
    if speed is None or speed["time"]["training_s"] + speed["time"]["evaluation_s"] <= 3600 * args.hours:
        return limit
    return {**limit, "fits": fitting(load_any, set_up, args.recipe, args.overrides, recipe, speed, args.hours)}


def write_tables(args: argparse.Namespace, recipe: Recipe, compared: Compared | None) -> list[str]:
    """The files of `--csv` and `--split`; a line about each."""
    if compared is None:
        return []
    return [
        *([] if args.csv is None else [write_copies(args.csv, compared)]),
        *([] if args.split is None else write_split(args.split, compared, args.group, args.val_share, recipe.seed)),
    ]


def examine(
    stage: Stage[Recipe, Job], recipe: Recipe, data: Opened, most: int | None, seconds: float
) -> tuple[Facts, Compared | None]:
    """Find out all about a recipe, this machine, and at `most` images of each split (None = all), and find copies."""
    refused: list[str] = []

    def attempt(action: Callable[[], T]) -> T | None:
        try:
            return action()
        except UserError as error:
            refused.append(str(error))
            return None

    training_pictures = data.train
    scored = stage.evaluated(recipe)
    labelled = data.other(ELSEWHERE, recipe.elsewhere)
    val = attempt(lambda: labelled.val) if labelled.config.has_val or scored else None
    if val is not None:
        attempt(lambda: stage.check_evaluation(recipe, data))
    job = attempt(lambda: stage.job(recipe, data))
    train = training_pictures if job is None else job.dataset.source
    splits = {name: source for name, source in (("train", train), ("val", val)) if source is not None}
    surveys = _surveys(recipe, splits, most)
    crop = max((view.shape for view in recipe.views.values()), key=lambda shape: shape[0] * shape[1])
    patch = 1 if job is None else job.dataset.patch
    compared = compare(surveys["train"], surveys.get("val"))
    facts: Facts = {
        "stage": stage.name,
        "refused": refused,
        "out_of_memory": False,
        "cautions": [] if job is None else [caution._asdict() for caution in stage.cautions(job)],
        "splits": {name: split_facts(found, crop, patch) for name, found in surveys.items()},
        "as_one": recipe.data.read_as_one(training_pictures),
        "copies": {} if compared is None else copy_facts(compared),
        "speed": None,
    }
    if job is not None and not refused:
        evaluated = 0 if val is None else sum(len(labelled.split(split)) for split in scored)
        try:
            facts["speed"] = attempt(partial(_speed, stage, job, seconds, evaluated))
        except torch.OutOfMemoryError:
            facts["out_of_memory"] = True
    return facts, compared


def _surveys(recipe: Recipe, splits: dict[str, Source], most: int | None) -> dict[str, Survey]:
    run, found = recipe.run, {}
    for name, source in splits.items():
        shown = task(f"pictures of {name}", min(len(source), most or len(source)))
        found[name] = survey(source, most, recipe.seed, run.workers, run.timeout, shown.advance)
        shown.close()
    return found


def _speed(stage: Stage[Recipe, Job], job: Job, seconds: float, evaluated: int) -> Facts:
    recipe, expected = job.recipe, expect(job)
    accelerator = make_accelerator(recipe.run.device, recipe.train.precision, recipe.run.timeout)
    encoder = (lambda method: stage.encoder(job, method)) if evaluated else None
    speed = measure(job, accelerator, seconds, encoder)
    return speed_facts(recipe, expected, speed, accelerator.device, evaluated)
