"""What would be done in time on this machine: fewer epochs, smaller crops, another recipe."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unlabeled.data.batch.sampler import per_process, steps_per_epoch, total_steps
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.doctor.facts import Facts
from unlabeled.errors import UserError
from unlabeled.launch.forecast import Work, count_work, per_picture
from unlabeled.launch.plan import on_meta
from unlabeled.progress import duration
from unlabeled.stages import load_any
from unlabeled.stages.finetune import FinetuneRecipe, finetuning
from unlabeled.stages.pretrain import PretrainRecipe, pretraining
from unlabeled.train.job import Training

SHARES = (0.75, 0.5, 0.375, 0.25)  # of the crops' sides
MOST = 3
# makes the recipe with some fields changed; None where they do not fit
Changed = Callable[[Sequence[str]], Any]


class Machine(NamedTuple):
    """What was measured of a machine.

    Attributes:
        data: the images, opened once for all recipes.
        device: of the network.
        flops: floating point operations per second in steps of the recipe.
        loader: pictures per second.
        share: of what network and loader would do alone that is left where they share cores.
        evaluation: seconds of all evaluations.
    """

    data: Opened
    device: torch.device
    flops: float
    loader: float
    share: float
    evaluation: float

    @classmethod
    def of(cls, recipe: Any, data: Opened, speed: Facts) -> Machine:
        """By the steps of a recipe."""
        device, rates, times = torch.device(speed["device"]), speed["images_per_s"], speed["time"]
        work = _work(recipe, data)
        calls = per_picture(work._replace(flops=0), speed["batch"]["measured"], 1, device)
        flops = work.flops / max(1 / rates["model"] - (calls if device.type == "cpu" else 0), 1e-9)
        alone = min(rates["model"], rates["loader"])
        real = times["steps"] * recipe.train.batch_size / max(times["training_s"], 1e-9)
        return cls(data, device, flops, rates["loader"], min(1, real / alone), times["evaluation_s"])

    def seconds(self, recipe: Any) -> float:
        """Of a run, with evaluations as in the recipe that was measured."""
        learning = per_picture(_work(recipe, self.data), _micro(recipe), self.flops, self.device)
        batch = recipe.train.batch_size
        steps = total_steps(recipe.train.epochs, steps_per_epoch(len(self.data.train), batch))
        return steps * batch * max(learning, 1 / self.loader) / self.share + self.evaluation


def fitting(path: str, overrides: Sequence[str], recipe: Any, data: Opened, speed: Facts, hours: float) -> list[str]:
    """Ways to be done within so many hours, in words, each with the time it would take.

    Args:
        path: of the recipe.
        overrides: of its fields.
        recipe: as resolved.
        data: its images.
        speed: as measured, see `unlabeled.doctor.facts`.
        hours: the limit.
    """
    machine, limit = Machine.of(recipe, data, speed), 3600 * hours
    changed = partial(_changed, path, overrides, data)
    return [
        *_epochs(changed, recipe, speed["time"], limit),
        *_crops(changed, recipe, machine, limit),
        *_recipes(path, recipe, machine, limit),
    ]


def _micro(recipe: Any) -> int:
    return per_process(recipe.train.batch_size, 1, recipe.run.accumulate)


def _training(recipe: Any, data: Opened) -> Training:
    return finetuning(recipe, data) if isinstance(recipe, FinetuneRecipe) else pretraining(recipe, data)


def _work(recipe: Any, data: Opened) -> Work:
    training = _training(recipe, data)
    method, dataset = on_meta(training.build), training.dataset
    return count_work(method, dataset.views, dataset.patch, _micro(recipe), recipe)


def _changed(path: str, overrides: Sequence[str], data: Opened, changes: Sequence[str]) -> Any:
    """The recipe with other fields, on the pictures that were opened for it; None where these do not fit."""
    try:
        changed = load_any(path, [*overrides, *changes]).model_copy(update={"data": data.config})
        _training(changed, data)
        return changed
    except UserError:
        return None


def _epochs(changed: Changed, recipe: Any, times: Facts, limit: float) -> Iterator[str]:
    """The most epochs of the recipe as it is."""
    most = math.floor(recipe.train.epochs * (limit - times["evaluation_s"]) / times["training_s"])
    changes = [f"train.epochs={most}"]
    if recipe.optim.warmup_epochs > most / 2:
        changes.append(f"optim.warmup_epochs={most / 10:g}")
    if most >= 1 and changed(changes) is not None:
        seconds = times["training_s"] * most / recipe.train.epochs + times["evaluation_s"]
        yield f"{' '.join(changes)} ({duration(seconds)})"


def _crops(changed: Changed, recipe: Any, machine: Machine, limit: float) -> Iterator[str]:
    """The largest crops that fit, all views smaller by the same share."""
    pretrains = not isinstance(recipe, FinetuneRecipe)
    section, name = (recipe.method, "method") if pretrains else (recipe.task, "task")
    views = {f"{name}.{field}": value for field, value in section if isinstance(value, View)}
    unit = recipe.method.backbone.crop_multiple if pretrains else 1
    for share in SHARES:
        changes = [f"{field}.size={_smaller(view, share, unit)}" for field, view in views.items()]
        smaller = changed(changes)
        if smaller is not None and (seconds := machine.seconds(smaller)) <= limit:
            yield f"{' '.join(changes)} (about {duration(seconds)})"
            return


def _smaller(view: View, share: float, unit: int) -> str:
    sides = [max(unit, round(share * side / unit) * unit) for side in view.shape]
    return str(sides[0]) if sides[0] == sides[1] else f"[{sides[0]},{sides[1]}]"


def _recipes(path: str, recipe: Any, machine: Machine, limit: float) -> Iterator[str]:
    """Recipes for pretraining by the same method that fit, on these pictures, those that take the longest first."""
    if isinstance(recipe, FinetuneRecipe):
        return
    found = []
    for file in _beside(path):
        try:
            other = load_any(file)
            if not isinstance(other, PretrainRecipe) or other.method.name != recipe.method.name:
                continue
            if other.method.backbone.channels != recipe.data.channels:
                continue
            seconds = machine.seconds(other.model_copy(update={"data": recipe.data}))
        except UserError:  # it is none, or the pictures do not suit it
            continue
        if seconds <= limit:
            side = max(max(view.shape) for view in other.method.views)
            found.append((seconds, f"{_near(file)}: crops of {side} px, {other.train.epochs:g} epochs"))
    yield from (f"{text} (about {duration(seconds)})" for seconds, text in sorted(found, reverse=True)[:MOST])


def _near(file: Path) -> str:
    """A path as it is typed here."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def _beside(path: str) -> list[Path]:
    """All other recipes of the folder `recipes` that a recipe lies in; of its own folder, where there is none."""
    own = Path(path).resolve()
    root = next((folder for folder in own.parents if folder.name == "recipes"), own.parent)
    found = root.rglob("*.yaml") if root.name == "recipes" else root.glob("*.yaml")
    return sorted(file for file in found if file != own)
