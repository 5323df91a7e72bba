"""Fine-tuning as the programs run it: recipe + export -> task -> the same engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from accelerate import Accelerator
from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.importing import importer_names
from unlabeled.data.archive.listing import Split
from unlabeled.data.batch.groups import Groups
from unlabeled.data.batch.sampler import per_process
from unlabeled.data.opened import Opened, location
from unlabeled.data.source import Source
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Encode
from unlabeled.launch.plan import Line, on_meta
from unlabeled.launch.sides import held_out, load_divided
from unlabeled.launch.stage import Stage
from unlabeled.paths import UserPath
from unlabeled.pretrain.method import Method
from unlabeled.processes import on_main
from unlabeled.progress import duration
from unlabeled.recipe import dump, parse
from unlabeled.recipe.free import FREE
from unlabeled.report.card import Made
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.pictures import PictureWriter
from unlabeled.train.recipe import Recipe
from unlabeled.train.watch import EarlyStopping, Watching
from unlabeled.transfer.labels import Labelled
from unlabeled.transfer.looks import Look
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.start import Start, check_preprocessing, is_said, load_start, of_the_encoder
from unlabeled.transfer.task import TASKS, Samples, Scorer, Task, TaskConfig
from unlabeled.transfer.tasks import classify

SUMMARY = "fine-tune a pretrained encoder on labelled pictures"


class Scoring(BaseModel, frozen=True, extra="forbid"):
    """When fine-tuning is scored on `data.val`; it always is at the end."""

    every: int | None = Field(None, ge=1, description="steps between scores; null = only at the end")


class FinetuneRecipe(Recipe, frozen=True, extra="forbid"):
    """A recipe for `unlabeled finetune`."""

    encoder: UserPath = Field(
        description="the backbone: an export folder, METHOD:FILE.pth of an official release "
        f"({', '.join(f'{name}:' for name in importer_names())}), timm:NAME, or hf-hub:OWNER/NAME (an export that "
        "`unlabeled push` sent there); scratch:FOLDER or scratch:timm:NAME "
        "for an architecture with random weights; PACKAGE.MODULE:NAME:FOLDER for an export of a network outside timm"
    )
    adapt: tuple[Literal["size", "channels"], ...] = Field(
        (),
        description="what of the encoder may be fitted to the pictures: size (its positions are resampled), channels "
        "(the first layer is summed or repeated)",
    )
    task: Annotated[TaskConfig, TASKS] = Field(
        classify.Config(), description="what to learn, and which parts of the backbone learn"
    )
    watch: Watching | None = Field(
        None, description="a score that decides which weights are kept, when rates fall, when to stop; null = none does"
    )
    evaluate: Annotated[Scoring, FREE] = Field(Scoring(), description="when to score; null = only at the end")
    look: Annotated[Look | None, FREE] = Field(
        Look(), description="pictures of errors and of where the model looks, for the page; null = none"
    )

    @field_validator("evaluate", mode="before")
    @classmethod
    def _at_the_end(cls, given: Any) -> Any:
        return Scoring() if given is None else given

    @field_validator("task")
    @classmethod
    def _view_suits_the_pictures(cls, task: TaskConfig, info: ValidationInfo) -> TaskConfig:
        if "data" in info.data:
            for view in task.crops:
                view.must_suit(info.data["data"].channels)
            if task.without_labels is not None:
                task.without_labels.seeing(info.data["data"])
        return task

    @model_validator(mode="after")
    def _device_can_cut_strong_views(self) -> FinetuneRecipe:
        without = self.task.without_labels
        if self.run.views == "device" and without is not None and (spec := without.augmented) is not None:
            raise ValueError(
                f"run.views=device cannot do what task.unlabelled.strong.rand_augment={spec!r} asks for: Pillow "
                "changes crops in workers. Set run.views=worker, or rand_augment: null and a jitter"
            )
        return self

    @model_validator(mode="after")
    def _task_suits_the_rest(self) -> FinetuneRecipe:
        self.task.check(self.watch, self.optim)
        return self

    @property
    def watching(self) -> Watching | None:
        return self.watch

    @property
    def evaluated_every(self) -> int | None:
        return self.evaluate.every

    @property
    def views(self) -> dict[str, View]:
        return {"task.view": self.task.view}


@dataclass(frozen=True, kw_only=True)
class FinetuneJob(Job):
    """The job of a recipe for `unlabeled finetune`."""

    recipe: FinetuneRecipe
    images: Labelled
    weights: str | None  # digest of the weights to start from; None where they are random
    scorer: Scorer | None = None  # of the images to score; None until `Finetune.scored`


class Finetune(Stage[FinetuneRecipe, FinetuneJob]):
    """The transfer stage."""

    name = "finetune"
    recipe_type = FinetuneRecipe

    def load(self, path: str | Path, overrides: Sequence[str] = ()) -> tuple[FinetuneRecipe, Sequence[str]]:
        return load_divided(self.recipe_type, path, overrides), ()

    def complete(self, recipe: FinetuneRecipe) -> tuple[FinetuneRecipe, Sequence[str]]:
        return complete(recipe)

    def job(self, recipe: FinetuneRecipe, data: Opened) -> FinetuneJob:
        check_preprocessing(recipe.encoder, recipe.data)
        task = recipe.task
        images = task.images(data, recipe.watch)
        shape, channels = task.view.shape, recipe.data.channels
        start = load_start(recipe.encoder, shape, channels, recipe.adapt, recipe.seed, task.from_classifier)
        return job_of(
            recipe, data, images, start, lambda: task.begin(start.encoder, images.train, start.trained, recipe.seed)
        )

    def scored(self, job: FinetuneJob, accelerator: Accelerator) -> FinetuneJob:
        recipe, images, learnt = job.recipe, job.images, self.learnt_from(job)
        task, groups = recipe.task, job.dataset.groups
        micro = per_process(recipe.train.batch_size, accelerator.num_processes, recipe.run.micro_batches)
        task.check_batch(micro)
        if groups is not None:
            groups.check(micro)
        predict = predicting(recipe, accelerator)
        choice = task.choice(predict, images.watched, recipe.watch)
        scorer = task.scorer(predict, images.test, learnt, choice)

        def scores(method: Any) -> Iterator[tuple[str, float]]:
            yield from task.logged(scorer(method)).items()

        watch = None
        if recipe.watch is not None and images.watched is not None:
            measure = choice or task.scorer(predict, images.watched, learnt)
            watch = EarlyStopping(recipe.watch, measure, recipe.optim.schedule.lowering)
        writer = PictureWriter(Path(recipe.output) / "pictures", recipe.data.mean, recipe.data.std)
        return replace(
            job,
            evaluate=scores,
            facts={"pictures": job.dataset.source.fingerprint(), "encoder": job.weights},
            picture=writer if recipe.run.pictures_every else None,
            watch=watch,
            scorer=scorer,
        )

    def learnt_from(self, job: FinetuneJob) -> Source:
        """The labelled images that the network will have learnt from."""
        return job.images.train

    def plan(self, job: FinetuneJob, taken: Sequence[str]) -> list[Line]:
        recipe, source = job.recipe, job.images.train
        task = recipe.task
        some = "".join(f", {name} {text}" for name, text in task.chosen().items())
        watch = recipe.watch
        return [
            ("pictures", f"{_count(source)} from {location(recipe.data)}, {len(source.classes)} classes{some}"),
            ("backbone", recipe.encoder),
            *_unlabelled(job),
            *([("taken", f"from the encoder: {', '.join(taken)}")] if taken else []),
            ("task", f"{task.name}, {task.describe()}"),
            *([("unfreezing", text)] if (text := task.unfreezing(on_meta(job.build), recipe.train.epochs)) else []),
            *([("watch", f"{watch.metric} every {watch.every} steps, keep the {watch.keep}")] if watch else []),
        ]

    def finish(self, job: FinetuneJob, engine: Engine) -> list[str]:
        anew = engine.use_best()
        return self.written(job, engine, cast("Task", engine.whole_method()), anew)

    def written(self, job: FinetuneJob, engine: Engine, method: Task, anew: bool) -> list[str]:
        """Write the results of a trained method, scored `anew` where its weights are not those of the last step."""
        recipe, scorer, output, task = job.recipe, job.scorer, engine.output, job.recipe.task
        assert scorer is not None
        # the last step was scored; a run that had ended before was not, and no checkpoint knows which head predicts
        latest = None if anew or scorer.choice is not None else scorer.latest
        result = latest or scorer(method)

        def write() -> bool:
            task.write_result(output, recipe.model_dump(mode="json"), engine, scorer)
            prepared = Preprocessing.of(recipe.data, task.evaluated_crop, task.evaluated_with)
            return method.export(output / "export", prepared, made(recipe, engine, result))

        whole = on_main(engine.accelerator, write)
        look, looks = recipe.look, None
        if look is not None:
            looks = on_main(
                engine.accelerator, lambda: task.write_looks(output / "look", scorer, method, look), whole=False
            )
        kept = engine.checkpoints.best
        best = f", by the weights of step {kept:,}" if kept not in (None, engine.step) else ""
        return [
            f"done in {duration(engine.clock.seconds)}: {task.headline} {result[task.headline]:.2f} % on "
            f"{result['pictures']:,} pictures{best}",
            f"  result     {output}/{', '.join(task.written)}",
            method.loaded_by(f"{output}/export", bool(whole)),
            *([looks] if looks else []),
        ]

    def evaluated(self, recipe: FinetuneRecipe) -> tuple[Split, ...]:
        return ("val",)

    def tested(self, recipe: FinetuneRecipe, labelled: Opened) -> Source:
        read = recipe.task.labels or not labelled.config.has_val
        return labelled.val if read else labelled.pictures("val")

    def encoder(self, job: FinetuneJob, method: Method) -> Encode:
        return cast("Task", method).timed


def job_of(
    recipe: FinetuneRecipe,
    data: Opened,
    images: Labelled,
    start: Start,
    build: Callable[[], Task],
    groups: Groups | None = None,
) -> FinetuneJob:
    """The job of a recipe on labelled images, of which `groups` may make up each batch. Raises UserError when crops do
    not fit the encoder, or a batch does not hold the groups."""
    task, encoder = recipe.task, start.encoder
    try:
        task.view.check(encoder.crop_multiple(encoder.model, encoder.patch_size))
    except ValueError as error:
        raise UserError(f"task.view: {error}") from error
    how = Samples(encoder.patch_size, recipe.seed, recipe.data.order, recipe.run.views == "device", groups)
    dataset = task.samples(images, data, how)
    if dataset.groups is not None:
        dataset.groups.check(recipe.train.batch_size)
    return FinetuneJob(recipe=recipe, build=build, data=data, dataset=dataset, images=images, weights=start.digest)


def _unlabelled(job: FinetuneJob) -> list[Line]:
    """The line of the plan about images without labels, where there are any."""
    without, source = job.recipe.task.without_labels, job.dataset.source
    if without is None:
        return []
    where = "data.train, labels hidden" if without.data is None else location(without.data)
    steps = len(source) // job.recipe.train.batch_size
    passes = steps * job.recipe.train.batch_size // (1 + without.ratio) / len(job.images.train)
    count = len(source) - len(job.images.train)
    return [("unlabelled", f"{count:,} from {where}; an epoch passes {passes:.3g} times over the labelled pictures")]


def _count(source: Source) -> str:
    """The number of images to learn from, and of all, for the plan."""
    whole = len(source.whole)
    return f"{len(source):,}" + (f" of {whole:,}" if whole > len(source) else "")


def complete(recipe: FinetuneRecipe) -> tuple[FinetuneRecipe, list[str]]:
    """A recipe whose encoder decides what it does not say of images; also those fields, as `a.b=value`.

    Raises:
        UserError: there is no such encoder, or what it says does not fit the rest.
    """
    wanted = of_the_encoder(recipe.encoder, recipe.data, recipe.task, recipe.adapt)
    taken = [f"{path}={json.dumps(value)}" for path, value in wanted.items() if not is_said(recipe, path)]
    if not taken:
        return recipe, []
    return parse(type(recipe), dump(recipe), taken, where=f"as {recipe.encoder} was trained"), taken


def predicting(recipe: FinetuneRecipe, accelerator: Accelerator) -> Predict:
    """How images are prepared and read for the scores of a recipe."""
    task, data, run = recipe.task, recipe.data, recipe.run
    how = (task.view.shape, task.evaluated_crop, task.evaluated_with, data.mean, data.std)
    return Predict(accelerator, *how, run.workers, run.timeout)


def made(recipe: FinetuneRecipe, engine: Engine, result: dict[str, Any]) -> Made:
    """How an export was made, for its card."""
    images, facts = cast("FinetuneJob", engine.job).images, engine.job.facts
    source = images.train
    counts = (len(source), facts["pictures"], engine.step, engine.skipped, len(engine.bad.keys))
    return Made(
        recipe.name,
        dump(recipe),
        *counts,
        encoder=recipe.encoder,
        way=recipe.task.way,
        classes=source.classes,
        order=recipe.data.classes,
        held_out="; ".join(held_out(engine.job.data)),
        accuracy=result[recipe.task.headline],
        scored=result["pictures"],
    )


STAGE = Finetune()
