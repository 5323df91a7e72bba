"""The work of `unlabeled start`: look, choose, measure, write, explain."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from rich.console import Console

from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.files import write_text
from unlabeled.launch.stage import Stage
from unlabeled.report import as_json, terminal
from unlabeled.signals import EXIT_DONE
from unlabeled.stages.pretrain import STAGE
from unlabeled.start import recipe as writing
from unlabeled.start.cautions import Known, cautions
from unlabeled.start.facts import Facts
from unlabeled.start.ladder import Ladder, ladder
from unlabeled.start.looking import Looked, look
from unlabeled.start.machine import Machine, machine
from unlabeled.start.opening import HELD, Place, place
from unlabeled.start.page import Started, page, tuning
from unlabeled.start.recipe import Built, Length, built, of_tokens
from unlabeled.start.rules import Rule, choose, document
from unlabeled.start.timing import GUESS, Pace, length, paced
from unlabeled.start.weights import Weights, at_hand
from unlabeled.train.job import Job

LIGHT = 30  # million parameters of weights for a CPU
Pretraining = Stage[Any, Any]


class Draft(NamedTuple):
    """What a recipe is made of, but for its length."""

    name: str
    facts: Facts
    chosen: Mapping[str, Rule]
    place: Place
    looked: Looked
    weights: Weights | None
    labelled: Place | None  # pictures elsewhere to evaluate on

    def built(self, length: Length) -> Built:
        """The recipe of so many epochs."""
        return built(*self, length)


def run(options: argparse.Namespace) -> int:
    """Write a recipe for the pictures, and print why and what comes next."""
    if options.rules:
        shown = document()
        print(as_json.write(shown), end="") if options.json else terminal.show(Console(), shown)
        return EXIT_DONE
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with offline():
        started = _started(options, STAGE, busy)
    shown = page(started)
    if options.json:
        print(as_json.write(shown), end="")
    else:
        terminal.show(Console(), shown)
    return EXIT_DONE


def _started(options: argparse.Namespace, stage: Pretraining, busy: float) -> Started:
    """Everything up to the written recipe."""
    found = place(options.pictures)
    labelled = found if options.labels is None else _labels(options.labels)
    here = machine(options.device)
    draft = drafted(options, found, labelled, here)
    pace = _paced(stage, draft) if here.here else None
    planned = length(draft.facts, draft.chosen, pace, _scored(labelled))
    made = draft.built(planned)
    written = _text(draft, made, options.out)
    job = _job(stage, written)
    write_text(options.out, written)
    recipe = quote(str(options.out))
    known = Known(draft.facts, draft.chosen, found, draft.looked, planned, pace is not None, recipe, busy)
    climbed = _ladder(draft, labelled, pace, job)
    return Started(options.out, made.fields, made.reasons, here, labelled, known, cautions(known), pace, climbed)


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub of Hugging Face from fetching anything."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _labels(path: str) -> Place:
    found = place(path)
    if found.labels not in ("splits", "flat"):
        expected = "expected folders of classes (train/CLASS and val/CLASS), or a table with a column of labels"
        raise UserError(f"--labels {path} has no labels; {expected}")
    return found


def drafted(options: argparse.Namespace, found: Place, labelled: Place, here: Machine) -> Draft:
    """Look at the pictures, and choose."""
    looked = look(found.config)
    hand = at_hand(found.path, LIGHT if here.device == "cpu" else float("inf"))
    weights = hand[0] if hand else None
    labels = found.labels if labelled is found else "elsewhere"
    facts = Facts(
        pictures=len(looked.source) - (round(HELD * found.labelled) if found.labels == "flat" else 0),
        side=looked.side,
        device=here.device,
        cores=here.cores,
        minutes=options.minutes,
        channels=looked.stored.channels,
        grey=looked.grey,
        wide=looked.stored.bits > 8,
        plain=looked.plain,
        labels=labels,
        classes=labelled.classes,
        each=labelled.each,
        gpus=here.gpus,
        memory=here.memory,
        bf16=here.bf16,
        weights="none" if weights is None else weights.kind,
        millions=0 if weights is None else weights.millions,
    )
    return Draft(
        named(found.path), facts, choose(facts), found, looked, weights, None if labelled is found else labelled
    )


def named(path: str) -> str:
    """The name of a run on the pictures at a path, of which there is no run yet."""
    stem = re.sub(r"(\.tar|\.csv|\.tsv|\.parquet)$", "", os.path.basename(path.rstrip("/")), flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_.-") or "pictures"
    names = [name, *(f"{name}_{i}" for i in range(2, 1000))]
    return next(one for one in names if not os.path.lexists(Path("runs") / one))


def _text(draft: Draft, made: Built, out: Path) -> str:
    second = draft.chosen["second"]
    head = [
        f"Pretraining on {draft.place.path}, by `unlabeled start`: a field is followed by the reason for it.",
        "",
        f"  command   unlabeled pretrain {quote(str(out))}",
        f"  cost      {made.reasons['train.epochs']}",
        f"  else      {second.take}: {second.reason(draft.facts)}",
        f"  then      {tuning(made.fields)}   (when there are labels)",
        "  source    `unlabeled start --rules`; the method's settings are those of the recipe "
        f"{draft.chosen['recipe'].take}",
    ]
    return writing.text(head, made)


def _job(stage: Pretraining, text: str, *changes: str) -> Job:
    """The job of a recipe, on the pictures themselves. Raises UserError when it is none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        recipe, _ = stage.load(file, changes)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": None})})
    return stage.job(recipe, Opened(recipe.data))


def _paced(stage: Pretraining, draft: Draft) -> Pace:
    text = _text(draft, draft.built(GUESS), Path("recipe.yaml"))
    return paced(_job(stage, text, "evaluate=null"), draft.facts, stage.encoder)


def _scored(labelled: Place) -> int:
    return labelled.labelled if labelled.labels in ("splits", "flat") else 0


def _ladder(draft: Draft, labelled: Place, pace: Pace | None, job: Job) -> Ladder | None:
    large = job.dataset.views[0].shape[0]
    crops = sum(view.count * (view.shape[0] / large) ** 2 for view in job.dataset.views)
    return ladder(job.recipe.output, labelled, draft.facts, of_tokens(draft.chosen, draft.weights), pace, crops)
