"""Pretraining: recipe -> method and images -> the engine -> an export of the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, cast

from accelerate import Accelerator
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import steps_per_epoch, total_steps
from unlabeled.data.opened import Opened, location
from unlabeled.errors import UserError
from unlabeled.evaluate.evaluation import Evaluation, Evaluator
from unlabeled.evaluate.splits import Splits
from unlabeled.launch.plan import Line, on_meta
from unlabeled.paths import UserPath
from unlabeled.pretrain.method import AnyMethod, Method, MethodConfig, PretrainMethod
from unlabeled.pretrain.rescale import Rescaled, Setting, check_epochs, rescale
from unlabeled.processes import on_main
from unlabeled.progress import duration
from unlabeled.recipe import dump
from unlabeled.report.card import Made, pretrain_card
from unlabeled.train.engine import Engine
from unlabeled.train.heads import load_method, split_heads
from unlabeled.train.job import Evaluate, Job, Training
from unlabeled.train.pictures import PictureWriter
from unlabeled.train.recipe import Recipe


class PretrainRecipe(Recipe, frozen=True, extra="forbid"):
    """A recipe for pretrain.py."""

    method: AnyMethod = Field(description="what is learnt and from what")
    init: UserPath | None = Field(
        None, description="export folder to go on from, encoder and heads; null = from scratch"
    )
    evaluate: Evaluation | None = Field(
        None, description="kNN and linear probes on labelled pictures while it trains; null = none"
    )

    @field_validator("method")
    @classmethod
    def _channels_match(cls, method: MethodConfig, info: ValidationInfo) -> MethodConfig:
        data = info.data.get("data")
        if data is not None and method.backbone.channels != data.channels:
            found, given = method.backbone.channels, data.channels
            raise ValueError(
                f"encoder.channels is {found}, the pictures have {given} (the values of data.mean and data.std). Set "
                f"method.encoder.channels={given}, or give mean and std {found} values each"
            )
        return method


class Pretrain:
    """The pretraining stage."""

    name = "pretrain"
    summary = "Pretrain an encoder on pictures without labels."
    rescaled: list[Rescaled]

    def schema(self) -> type[PretrainRecipe]:
        """The type of its recipes."""
        return PretrainRecipe

    def complete(self, recipe: PretrainRecipe) -> PretrainRecipe:
        """The recipe as it is: it says everything."""
        return recipe

    def job(self, recipe: PretrainRecipe, data: Opened, accelerator: Accelerator) -> Job:
        """Open the pictures and set up method, views and evaluators."""
        training = pretraining(recipe, data)
        self.rescaled = training.rescaled
        return Job(
            recipe,
            training.build,
            data,
            training.dataset,
            self._evaluators(recipe, data, accelerator),
            {"pictures": training.dataset.source.fingerprint()},
            PictureWriter(Path(recipe.output) / "pictures", recipe.data.mean, recipe.data.std),
            every=None if recipe.evaluate is None else recipe.evaluate.every,
        )

    def what(self, recipe: PretrainRecipe, job: Job) -> list[Line]:
        """Its own lines of the plan."""
        source = job.dataset.source
        labels = f", {len(source.classes)} classes (not used to pretrain)" if source.classes else ""
        encoder = recipe.method.backbone
        model = f"{recipe.method.name} with {encoder.model}, {encoder.summary}"
        changed = [
            ("rescaled", f"{field}: paper {paper:g}, yours {yours:.6g}: {why}")
            for field, paper, yours, why in self.rescaled
        ]
        seen = [] if recipe.evaluate is None else [("evaluate", _evaluated(recipe, job))]
        return [
            ("pictures", f"{len(source):,} from {location(recipe.data)}{labels}"),
            ("method", model),
            *seen,
            *changed,
        ]

    def finish(self, recipe: PretrainRecipe, engine: Engine, output: Path) -> list[str]:
        """Export the encoder, with heads and a model card."""
        method = cast("PretrainMethod", engine.whole_method())
        encoder, heads = split_heads(method)
        how = recipe.evaluate or Evaluation()
        prepared = Preprocessing.of(recipe.data, how.crop_pct, how.interpolation, how.pool or method.pooling())
        source = engine.job.dataset.source
        counts = (len(source), engine.job.facts["pictures"], engine.step, engine.skipped, len(engine.bad.keys))
        card = pretrain_card(Made(recipe.name, dump(recipe), *counts), recipe.method.name, engine.evaluated)
        on_main(engine.accelerator, lambda: export_encoder(output / "export", encoder, prepared, card, heads))
        return [
            f"done in {duration(engine.clock.seconds)}: {engine.step:,} steps, {engine.skipped} skipped, "
            f"{len(engine.bad.keys)} bad pictures",
            f"  encoder    {output}/export  (timm.create_model('local-dir:{output}/export', pretrained=True))",
            f"  metrics    {output}/metrics.jsonl   pictures {output}/pictures",
            f"next: python -m unlabeled ladder {quote(f'{output}/export')} {_labelled(engine.job.data, output)}"
            "   (which way to use it pays)",
        ]

    def _evaluators(self, recipe: PretrainRecipe, data: Opened, accelerator: Accelerator) -> Evaluate | None:
        if recipe.evaluate is None:
            if recipe.data.has_val:  # nothing looks at it now, but what comes later will
                data.pictures("val")
            return None
        if not recipe.data.has_val:
            raise UserError("evaluate needs labelled pictures, but data.val is null. Set data.val, or evaluate=null.")
        evaluate, run = recipe.evaluate, recipe.run
        evaluate.check_reads(recipe.method.backbone)
        where = (accelerator.device, run.workers, accelerator.process_index, accelerator.num_processes)
        splits = Splits(evaluate, data, *where, labels=evaluate.needs_labels, timeout=run.timeout)
        evaluate.check(splits)
        evaluator = Evaluator(evaluate, splits, recipe.method.views[0].shape)

        def scores(method: Any) -> Iterator[tuple[str, float]]:
            return evaluator(method.evaluated(), method.pooling())

        return scores


def _evaluated(recipe: PretrainRecipe, job: Job) -> str:
    """What is measured while it trains, and how pictures become features for it; the export says the same."""
    how, (height, width) = recipe.evaluate or Evaluation(), recipe.method.views[0].shape
    method = cast("PretrainMethod", on_meta(job.build))
    pool = how.pool or f"{method.pooling()} (as {recipe.method.name} is evaluated)"
    names = ", ".join(how.protocols)
    return f"{names}; size {height}x{width}, crop {how.crop_pct:g}, {how.interpolation}, pooling {pool}"


def _labelled(data: Opened, output: Path) -> str:
    """What to give a command that asks for labelled pictures: the run itself where it has some."""
    try:
        if data.config.has_val and data.train.classes and data.val.classes:
            return quote(str(output))
    except UserError:  # labels that nobody has asked for, and that do not fit
        pass
    return "LABELLED"


def pretraining(recipe: PretrainRecipe, data: Opened) -> Training:
    """The method and the pictures of a recipe for pretrain.py.

    Raises:
        UserError: they cannot be had, or do not fit together.
    """
    source, train = data.train, recipe.train
    steps = total_steps(train.epochs, steps_per_epoch(len(source), train.batch_size))
    check_epochs(recipe.method, train.epochs)
    config, rescaled = rescale(recipe.method, Setting(train.batch_size, train.epochs, steps))

    def build() -> Method:
        method = config.build()
        if recipe.init:
            load_method(method, recipe.init)
        return method

    return Training(build, data, ViewDataset(source, config.views, config.backbone.patch_size, recipe.seed), rescaled)


STAGE = Pretrain()
