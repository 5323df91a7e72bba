"""Shorter runs that fit into a time limit on this machine: fewer epochs, smaller crops, another recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from unlabeled.data.batch.sampler import per_process, steps_per_epoch, total_steps
from unlabeled.doctor.facts import Facts
from unlabeled.errors import UserError
from unlabeled.launch.forecast import Work, count_work, per_picture
from unlabeled.launch.plan import on_meta
from unlabeled.progress import duration
from unlabeled.recipe.shipped import called, find
from unlabeled.train.job import Job
from unlabeled.train.recipe import Recipe

SHARES = (0.75, 0.5, 0.375, 0.25)  # of the crops' sides
MOST = 3
# reads a recipe of any stage with some fields changed; sets up the job of a recipe
Load = Callable[[str | Path, Sequence[str]], Recipe]
Set = Callable[[Recipe], Job]
# the job of the recipe with some fields changed; None where they do not fit
Changed = Callable[[Sequence[str]], Job | None]


class Machine(NamedTuple):
    """Measurements of a machine.

    Attributes:
        device: of the network.
        flops: floating point operations per second in steps of the recipe.
        loader: pictures per second.
        share: of what network and loader would do alone that is left where they share cores.
        evaluation: seconds of all evaluations.
    """

    device: torch.device
    flops: float
    loader: float
    share: float
    evaluation: float

    @classmethod
    def of(cls, job: Job, speed: Facts) -> Machine:
        """By the steps of a job."""
        device, rates, times = torch.device(speed["device"]), speed["images_per_s"], speed["time"]
        work = _work(job)
        calls = per_picture(work._replace(flops=0), speed["batch"]["measured"], 1, device)
        flops = work.flops / max(1 / rates["model"] - (calls if device.type == "cpu" else 0), 1e-9)
        alone = min(rates["model"], rates["loader"])
        real = times["steps"] * job.recipe.train.batch_size / max(times["training_s"], 1e-9)
        return cls(device, flops, rates["loader"], min(1, real / alone), times["evaluation_s"])

    def seconds(self, job: Job) -> float:
        """Of a run, with evaluations as in the job that was measured."""
        recipe = job.recipe
        learning = per_picture(_work(job), _micro(recipe), self.flops, self.device)
        batch = recipe.train.batch_size
        steps = total_steps(recipe.train.epochs, steps_per_epoch(len(job.data.train), batch))
        return steps * batch * max(learning, 1 / self.loader) / self.share + self.evaluation


def fitting(
    load: Load, set_up: Set, path: str, overrides: Sequence[str], recipe: Recipe, speed: Facts, hours: float
) -> list[str]:
    """Ways to be done within so many hours, in words, each with the time it would take on the images of the recipe."""
    machine, limit = Machine.of(set_up(recipe), speed), 3600 * hours

    def changed(changes: Sequence[str]) -> Job | None:
        try:
            return set_up(load(path, [*overrides, *changes]).model_copy(update={"data": recipe.data}))
        except UserError:
            return None

    return [
        *_epochs(changed, recipe, speed["time"], limit),
        *_crops(changed, recipe, machine, limit),
        *_recipes(load, set_up, path, recipe, machine, limit),
    ]


def _micro(recipe: Recipe) -> int:
    return per_process(recipe.train.batch_size, 1, recipe.run.micro_batches)


def _work(job: Job) -> Work:
    method, dataset, recipe = on_meta(job.trained), job.dataset, job.recipe
    return count_work(method, dataset.views, dataset.patch, _micro(recipe), recipe.data.channels, dataset.unit)


def _epochs(changed: Changed, recipe: Recipe, times: Facts, limit: float) -> Iterator[str]:
    """The most epochs of the recipe as it is."""
    most = math.floor(recipe.train.epochs * (limit - times["evaluation_s"]) / times["training_s"])
    changes = [f"train.epochs={most}"]
    if recipe.optim.warmup_epochs > most / 2:
        changes.append(f"optim.warmup_epochs={most / 10:g}")
    if most >= 1 and changed(changes) is not None:
        seconds = times["training_s"] * most / recipe.train.epochs + times["evaluation_s"]
        yield f"{' '.join(changes)} ({duration(seconds)})"


def _crops(changed: Changed, recipe: Recipe, machine: Machine, limit: float) -> Iterator[str]:
    """The largest crops that fit, all views smaller by the same share."""
    unit = recipe.crop_unit
    for share in SHARES:
        changes = []
        for field, view in recipe.views.items():
            height, width = (max(unit, round(share * side / unit) * unit) for side in view.shape)
            changes.append(f"{field}.size={height if height == width else f'[{height},{width}]'}")
        smaller = changed(changes)
        if smaller is not None and (seconds := machine.seconds(smaller)) <= limit:
            yield f"{' '.join(changes)} (about {duration(seconds)})"
            return


def _recipes(load: Load, set_up: Set, path: str, recipe: Recipe, machine: Machine, limit: float) -> Iterator[str]:
    """Recipes for pretraining by the same method that fit, on these pictures, those that take the longest first."""
    own = find(path).resolve()
    # all of the folder `recipes` that the recipe lies in; of its own folder, where there is none
    root = next((folder for folder in own.parents if folder.name == "recipes"), None)
    found = []
    for file in sorted(root.rglob("*.yaml") if root else own.parent.glob("*.yaml")):
        if file == own:
            continue
        try:
            # one that begins with weights learns something else, and its weights would have to be fetched to read it
            other = load(file, ["init=null"])
            if not other.replaces(recipe):
                continue
            seconds = machine.seconds(set_up(other.model_copy(update={"data": recipe.data})))
        except UserError:  # it is none, or the pictures do not suit it
            continue
        if seconds <= limit:
            side = max(max(view.shape) for view in other.views.values())
            found.append((seconds, f"{called(file)}: crops of {side} px, {other.train.epochs:g} epochs"))
    yield from (f"{text} (about {duration(seconds)})" for seconds, text in sorted(found, reverse=True)[:MOST])
