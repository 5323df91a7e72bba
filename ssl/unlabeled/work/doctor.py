"""The work of `unlabeled doctor`: look, measure, print."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from rich.console import Console

from unlabeled.accelerator import make_accelerator
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.prepared import which
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.doctor.compared import Compared, compare
from unlabeled.doctor.facts import Facts, copy_facts, speed_facts, split_facts
from unlabeled.doctor.fits import Set, fitting
from unlabeled.doctor.kept import Kept
from unlabeled.doctor.page import page
from unlabeled.doctor.pictures import Survey, survey
from unlabeled.doctor.speed import expect, measure
from unlabeled.doctor.tables import check_split, write_copies, write_split
from unlabeled.doctor.verdict import findings
from unlabeled.errors import UserError
from unlabeled.files import check_writable, write_text
from unlabeled.launch.stage import Stage
from unlabeled.processes import cores_each, joined, on_main
from unlabeled.progress import task
from unlabeled.report import as_json, html, terminal
from unlabeled.sharing.shards import Sharing
from unlabeled.signals import EXIT_BAD_INPUT, EXIT_DONE
from unlabeled.stages import load_any, stage_of
from unlabeled.text import one_line
from unlabeled.train.job import Job
from unlabeled.train.recipe import ELSEWHERE, Recipe

T = TypeVar("T")
TIMEOUT = 12 * 3600.0  # seconds that a process may wait for another's last pictures


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
    with warnings.catch_warnings():
        warnings.simplefilter("once", append=True)
        with joined(TIMEOUT) as group:
            looked = look_at(stage, recipe, args, Sharing(cores_each(), group, args.engine))
        if not group.is_main_process:
            return EXIT_DONE
        facts = examine(stage, recipe, looked, args.seconds)
        facts["time_limit"] = time_limit(args, recipe, partial(stage.job, data=looked.data), facts["speed"])
    written = write_tables(args, recipe, looked.compared)
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


class Looked(NamedTuple):
    """A recipe's pictures, as far as they could be opened and looked at.

    Attributes:
        data: the section, opened.
        labelled: the pictures to evaluate on.
        val: these, None without.
        job: what would be trained; None where it is refused.
        refused: reasons why a run would not start.
        surveys: by the name of the split.
        compared: copies among them.
    """

    data: Opened
    labelled: Opened
    val: Source | None
    job: Job | None
    refused: list[str]
    surveys: dict[str, Survey]
    compared: Compared | None


def look_at(stage: Stage[Recipe, Job], recipe: Recipe, args: argparse.Namespace, sharing: Sharing) -> Looked:
    """Open everything, look at pictures of each split and find copies. Call it on all processes: the main one gets
    all."""
    refused: list[str] = []
    attempt = partial(attempted, refused)
    keep, main = args.keep, sharing.group.is_main_process
    index = Path(recipe.output) / "index" if keep is None else keep / "index"
    data = Opened(recipe.data, IndexFolder(index, write=keep is not None and main))
    on_main(sharing.group, lambda: data.train, whole=False)  # the others read its index, where there is one
    scored = stage.evaluated(recipe)
    labelled = data.other(ELSEWHERE, recipe.elsewhere)
    val = attempt(lambda: stage.tested(recipe, labelled)) if labelled.config.has_val or scored else None
    if val is not None:
        attempt(lambda: stage.check_evaluation(recipe, data))
    job = attempt(lambda: stage.job(recipe, data))
    train = data.train if job is None else job.dataset.source
    opened = {"train": (train, data), "val": (val, labelled)}
    splits = {name: (source, of.config) for name, (source, of) in opened.items() if source is not None}
    # a split is of all images
    most = None if args.full or args.split else args.pictures
    surveys = _surveys(recipe, splits, most, keep, sharing)
    compared = compare(surveys["train"], surveys.get("val"), sharing)
    return Looked(data, labelled, val, job, refused, surveys, compared)


def attempted(refused: list[str], action: Callable[[], T]) -> T | None:
    """The result of an action; None where a UserError refuses it, which is noted."""
    try:
        return action()
    except UserError as error:
        refused.append(str(error))
        return None


def _surveys(
    recipe: Recipe,
    splits: dict[str, tuple[Source, SourceConfig]],
    most: int | None,
    keep: Path | None,
    sharing: Sharing,
) -> dict[str, Survey]:
    run, found = recipe.run, {}
    for name, (source, config) in splits.items():
        count = min(len(source), most or len(source))
        shown = task(f"pictures of {name}", -(-count // sharing.group.num_processes))
        kept = Kept(keep, name, json.dumps(which(config)))
        # each loader has workers of its own
        how = sharing._replace(workers=1, cpus=run.workers + 1)
        found[name] = survey(source, most, recipe.seed, run.workers, run.timeout, shown.advance, how, kept)
        shown.close()
    return found


def examine(stage: Stage[Recipe, Job], recipe: Recipe, looked: Looked, seconds: float) -> Facts:
    """Find out all about a recipe, this machine and the images that were looked at."""
    crop = max((view.shape for view in recipe.views.values()), key=lambda shape: shape[0] * shape[1])
    job, refused, compared = looked.job, looked.refused, looked.compared
    patch = 1 if job is None else job.dataset.patch
    facts: Facts = {
        "stage": stage.name,
        "refused": refused,
        "out_of_memory": False,
        "cautions": [] if job is None else [caution._asdict() for caution in stage.cautions(job)],
        "splits": {name: split_facts(found, crop, patch) for name, found in looked.surveys.items()},
        "as_one": recipe.data.read_as_one(looked.data.train),
        "copies": {} if compared is None else copy_facts(compared),
        "speed": None,
    }
    if job is not None and not refused:
        scored = stage.evaluated(recipe)
        sides = [] if looked.val is None else [looked.val if one == "val" else looked.labelled.train for one in scored]
        evaluated = sum(map(len, sides))
        try:
            facts["speed"] = attempted(refused, partial(_speed, stage, job, seconds, evaluated))
        except torch.OutOfMemoryError:
            facts["out_of_memory"] = True
    return facts


def _speed(stage: Stage[Recipe, Job], job: Job, seconds: float, evaluated: int) -> Facts:
    recipe, expected = job.recipe, expect(job)
    accelerator = make_accelerator(recipe.run.device, recipe.train.precision, recipe.run.timeout)
    encoder = (lambda method: stage.encoder(job, method)) if evaluated else None
    speed = measure(job, accelerator, seconds, encoder)
    return speed_facts(recipe, expected, speed, accelerator.device, evaluated)
