"""Fine-tuning as the programs run it: recipe + export -> task -> the same engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator
from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.weights import weights_digest
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Order, per_process
from unlabeled.data.opened import Opened, location
from unlabeled.data.source import Source
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import Line, number, on_meta
from unlabeled.paths import UserPath
from unlabeled.pretrain.method import Method
from unlabeled.processes import on_main
from unlabeled.progress import duration
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job, Training
from unlabeled.train.pictures import PictureWriter
from unlabeled.train.recipe import Recipe
from unlabeled.train.watch import EarlyStopping, Watching
from unlabeled.transfer.build import Trained
from unlabeled.transfer.choice import Choice
from unlabeled.transfer.classify import Classifier
from unlabeled.transfer.config import ClassifyConfig
from unlabeled.transfer.exports import export_result
from unlabeled.transfer.labels import Labelled, labelled
from unlabeled.transfer.score import Scorer, check_preprocessing, write_result
from unlabeled.transfer.start import complete, load_start
from unlabeled.transfer.sweep import LinearSweep


class Scoring(BaseModel, frozen=True, extra="forbid"):
    """When fine-tuning is scored on `data.val`; it always is at the end."""

    every: int | None = Field(None, ge=1, description="steps between scores; null = only at the end")


class FinetuneRecipe(Recipe, frozen=True, extra="forbid"):
    """A recipe for finetune.py."""

    encoder: UserPath = Field(
        description="the backbone: an export folder, METHOD:FILE.pth of an official release (mae:, simmim:, mocov3:, "
        "dino:, ibot:, dinov2:), or timm:NAME; scratch:FOLDER or scratch:timm:NAME for an architecture with random "
        "weights"
    )
    adapt: tuple[Literal["size", "channels"], ...] = Field(
        (),
        description="what of the encoder may be fitted to the pictures: size (its positions are resampled), channels "
        "(the first layer is summed or repeated)",
    )
    task: ClassifyConfig = Field(ClassifyConfig(), description="what to learn, and which parts of the backbone learn")
    watch: Watching | None = Field(
        None, description="a score that decides which weights are kept, when rates fall, when to stop; null = none does"
    )
    evaluate: Scoring = Field(Scoring(), description="when to score; null = only at the end")

    @field_validator("evaluate", mode="before")
    @classmethod
    def _at_the_end(cls, given: Any) -> Any:
        return Scoring() if given is None else given

    @field_validator("task")
    @classmethod
    def _view_suits_the_pictures(cls, task: ClassifyConfig, info: ValidationInfo) -> ClassifyConfig:
        if "data" in info.data:
            task.view.must_suit(info.data["data"].channels)
        return task

    @model_validator(mode="after")
    def _heads_are_chosen_and_do_not_meet(self) -> FinetuneRecipe:
        task, watch, optim = self.task, self.watch, self.optim
        heads = len(task.sweep.heads(task.pool))
        if task.mode != "sweep" or heads == 1:
            return self
        if watch is None:
            raise ValueError(
                f"task.mode sweep trains {heads} heads and must be told which pictures choose one: set "
                "watch: {every: STEPS, hold_out: 0.1}; hold_out: 0 chooses on data.val, as published results do"
            )
        if watch.metric == "nll":
            raise ValueError("heads are compared by how often they are right: set watch.metric=accuracy")
        if optim.clip is not None and optim.clip_by != "tensor":
            raise ValueError(
                f"optim.clip {optim.clip:g} by {optim.clip_by} would make {heads} heads share one norm: set "
                "optim.clip=null or optim.clip_by=tensor"
            )
        return self


class Finetune:
    """The transfer stage."""

    name = "finetune"
    summary = "Fine-tune a pretrained encoder on labelled pictures."
    scorer: Scorer
    taken: Sequence[str] = ()

    def schema(self) -> type[FinetuneRecipe]:
        """The type of its recipes."""
        return FinetuneRecipe

    def complete(self, recipe: FinetuneRecipe) -> FinetuneRecipe:
        """A recipe with what only its encoder can say."""
        recipe, self.taken = complete(recipe)
        return recipe

    def job(self, recipe: FinetuneRecipe, data: Opened, accelerator: Accelerator) -> Job:
        """Load the backbone, choose the labels, set up the task."""
        world, train = accelerator.num_processes, recipe.train
        recipe.task.mixing.check(per_process(train.batch_size, world, recipe.run.accumulate))
        training = finetuning(recipe, data)
        dataset, pictures = training.dataset, training.pictures
        assert pictures is not None
        watched = pictures.watched if recipe.task.mode == "sweep" else None
        choice = None if watched is None else Choice(recipe, accelerator, watched)
        self.scorer = scorer = Scorer(recipe, accelerator, pictures.test, dataset.source.labels, choice)

        def accuracy(method: Any) -> Iterator[tuple[str, float]]:
            yield "accuracy", scorer(method)["accuracy"]

        facts = {"pictures": dataset.source.fingerprint(), "encoder": training.weights}
        watch = self._watch(recipe, accelerator, pictures)
        writer = PictureWriter(Path(recipe.output) / "pictures", recipe.data.mean, recipe.data.std)
        picture = writer if recipe.run.pictures_every else None
        return Job(recipe, training.build, data, dataset, accuracy, facts, picture, watch, recipe.evaluate.every)

    def _watch(self, recipe: FinetuneRecipe, accelerator: Accelerator, pictures: Labelled) -> EarlyStopping | None:
        if recipe.watch is None or pictures.watched is None:
            return None
        measure = self.scorer.choice or Scorer(recipe, accelerator, pictures.watched, pictures.train.labels)
        return EarlyStopping(recipe.watch, measure, recipe.optim.schedule.lowering)

    def what(self, recipe: FinetuneRecipe, job: Job) -> list[Line]:
        """Its own lines of the plan."""
        task, source = recipe.task, job.dataset.source
        chosen = {
            "long tail": task.long_tail and f"{task.long_tail:g} : 1",
            "share": task.fraction < 1 and f"{100 * task.fraction:g} % of the labels",
            "shots": task.shots and f"{task.shots} a class",
            "repeated": task.repeats > 1 and f"{task.repeats} times in a batch",
            "drawn": task.balance != "none" and f"{task.balance} from epoch {task.balance_from:g}",
        }
        some = "".join(f", {name} {text}" for name, text in chosen.items() if text)
        watch = recipe.watch
        return [
            ("pictures", f"{_count(source)} from {location(recipe.data)}, {len(source.classes)} classes{some}"),
            ("backbone", recipe.encoder),
            *([("taken", f"from the encoder: {', '.join(self.taken)}")] if self.taken else []),
            ("task", f"classify, mode {task.mode}, {_reading(task)}"),
            *([("waking", _waking(recipe, job))] if task.mode == "gradual" else []),
            *([("watch", f"{watch.metric} every {watch.every} steps, keep the {watch.keep}")] if watch else []),
        ]

    def finish(self, recipe: FinetuneRecipe, engine: Engine, output: Path) -> list[str]:
        """Write result.json and a timm classifier."""
        other = engine.use_best()
        method: Any = engine.whole_method()
        # the last step was scored; a run that had already ended when it was started again was not, and which head
        # predicts is not part of a checkpoint
        latest = None if other or self.scorer.choice is not None else self.scorer.latest
        result = latest or self.scorer(method)

        def write() -> bool:
            write_result(output, engine, self.scorer)
            return export_result(output / "export", method, recipe, engine, result)

        whole = on_main(engine.accelerator, write)
        load = f"timm.create_model('local-dir:{output}/export', pretrained=True)"
        best = f", by the weights of step {engine.checkpoints.best:,}" if other else ""
        return [
            f"done in {duration(engine.clock.seconds)}: accuracy {result['accuracy']:.2f} % on "
            f"{result['pictures']:,} pictures{best}",
            f"  result     {output}/result.json, result.md, confusion.png, reliability.png",
            f"  classifier {output}/export  ({load})"
            if whole
            else f"  backbone   {output}/export  ({load}), the linear head is in heads.safetensors",
        ]


def _count(source: Source) -> str:
    """How many pictures are learnt from, and of how many."""
    whole = len(source.whole)
    return f"{len(source):,}" + (f" of {whole:,}" if whole > len(source) else "")


def _reading(task: ClassifyConfig) -> str:
    """What the head or the heads of a task read."""
    if task.mode != "sweep":
        return f"pool {'as it was trained' if task.mode == 'retrain' else task.pool}"
    heads = task.sweep.heads(task.pool)
    kinds = dict.fromkeys(f"{head.kind.pool} of {number(head.kind.blocks, 'block')}" for head in heads)
    return f"{number(len(heads), 'head')}: {number(len(task.sweep.rates), 'rate')} x {', '.join(kinds)}"


def _waking(recipe: FinetuneRecipe, job: Job) -> str:
    """When layers begin to learn, and how many never do."""
    method: Any = on_meta(job.build)
    every, epochs, below = recipe.task.wake_every, recipe.train.epochs, max(method.layers.values())
    text = f"{below + 1} layers from the top, one every {every:g} epochs"
    asleep = sum(every * depth >= epochs for depth in range(1, below + 1))
    if not asleep:
        return text
    return f"{text}: {asleep} never learn in {epochs:g} epochs. task.wake_every below {epochs / below:.3g} wakes all"


def finetuning(recipe: FinetuneRecipe, data: Opened) -> Training:
    """The classifier and the labelled pictures of a recipe for finetune.py.

    Raises:
        UserError: they cannot be had, or do not fit together.
    """
    check_preprocessing(recipe)
    task, pictures = recipe.task, labelled(recipe, data)
    encoder, trained = load_start(recipe)
    _check_crop(task.view, encoder.crop_multiple)
    counts = np.bincount(pictures.train.labels, minlength=len(pictures.train.classes)).tolist()
    dataset = ViewDataset(
        pictures.train,
        [task.view],
        encoder.patch_size,
        recipe.seed,
        mixing=task.mixing,
        order=Order(pictures.train.labels, task.balance, task.balance_from, task.repeats),
    )

    def build() -> Method:
        if task.mode == "sweep":
            return LinearSweep(encoder, task, counts)
        return Classifier(encoder, task, counts, trained)

    return Training(build, data, dataset, [], pictures, _digest(recipe, encoder, trained))


def _digest(recipe: FinetuneRecipe, encoder: Encoder, trained: Trained | None) -> str | None:
    if recipe.encoder.startswith("scratch:"):
        return None
    return weights_digest(encoder.state_dict() if trained is None else trained.weights)


def _check_crop(view: View, patch: int) -> None:
    try:
        view.check(patch)
    except ValueError as error:
        raise UserError(f"task.view: {error}") from error


STAGE = Finetune()
