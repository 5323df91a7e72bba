"""Incremental learning as the program runs it: classes come in tasks, and each task is an ordinary run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from accelerate import Accelerator
from pydantic import Field, model_validator

from unlabeled.data.batch.groups import Groups
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.files import write_text
from unlabeled.incremental import report
from unlabeled.incremental.chain import Chain, Passed
from unlabeled.incremental.images import of_task, renumbered
from unlabeled.incremental.memory import Memory
from unlabeled.incremental.method import Increment
from unlabeled.incremental.recipe import Protocol, Tasks
from unlabeled.incremental.strategies import lwf
from unlabeled.incremental.walk import Walk, folder_of, seed_of
from unlabeled.launch.plan import Line, number
from unlabeled.launch.resume import refuse_another
from unlabeled.launch.stage import Again, Running, make_room
from unlabeled.processes import claim_together, on_main
from unlabeled.recipe import dump
from unlabeled.report import as_json, html, markdown
from unlabeled.stages.finetune import Finetune, FinetuneJob, FinetuneRecipe, job_of, predicting
from unlabeled.train.job import Job
from unlabeled.transfer.labels import Labelled
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.result import Scorer
from unlabeled.transfer.start import check_preprocessing, load_start
from unlabeled.transfer.tasks.classify import Config

SUMMARY = "fine-tune on classes that come in tasks, one after another"
FORBIDDEN = {"mixing", "label_smoothing", "effective_number", "logit_adjustment", "flood", "ema", "unlabelled"}


class IncrementalRecipe(FinetuneRecipe, frozen=True, extra="forbid"):
    """A recipe for `unlabeled incremental`."""

    tasks: Tasks = Field(description="which classes come when, how they are learnt, and what is remembered")

    @model_validator(mode="after")
    def _tasks_fit(self) -> IncrementalRecipe:
        if not isinstance(self.task, Config):
            raise ValueError(f"classes that come in tasks need task.name=classify, found {self.task.name}")
        if self.task.from_classifier or self.task.strategy.head_norm(1) is not None:
            raise ValueError(
                f"task.strategy {self.task.strategy.name} has no head that grows: use full, frozen, lora, differential "
                "or gradual"
            )
        if self.watch is not None:
            raise ValueError("watch would choose weights by images of later tasks: leave it out")
        fields = Config.model_fields
        if said := [name for name in sorted(FORBIDDEN) if getattr(self.task, name) != fields[name].get_default()]:
            raise ValueError(f"task.{said[0]} changes the loss, which tasks.strategy decides: leave it out")
        if self.tasks.strategy.remembers and self.tasks.memory.none:
            raise ValueError(
                f"tasks.strategy {self.tasks.strategy.name} needs images of earlier tasks: set "
                "tasks.memory.total=2000, or tasks.memory.per_class=20"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class IncrementJob(FinetuneJob):
    """The job of one task: a `recipe` of its own, in the run of the recipe `whole`; `everything` are all images."""

    recipe: IncrementalRecipe
    whole: IncrementalRecipe
    everything: Labelled
    protocol: Protocol
    number: int


class Incremental(Finetune):
    """The stage of classes that come in tasks; `job`, `scored` and `finish` are those of one task."""

    name = "incremental"
    recipe_type: type[FinetuneRecipe] = IncrementalRecipe

    def job(self, recipe: FinetuneRecipe, data: Opened) -> FinetuneJob:
        """The job of the first task, by which the run is planned."""
        recipe = cast("IncrementalRecipe", recipe)
        return task_job(recipe, data, *everything(recipe, data), 0)

    def learnt_from(self, job: FinetuneJob) -> Source:
        one = cast("IncrementJob", job)
        train = one.everything.train
        return Part(train, np.flatnonzero(train.labels < one.protocol.known(one.number)))

    def scorer_of(self, job: Job) -> Scorer:
        return cast("Scorer", cast("FinetuneJob", job).scorer)

    def predict_of(self, job: Job, accelerator: Accelerator) -> Predict:
        return predicting(cast("FinetuneJob", job).recipe, accelerator)

    def plan(self, job: FinetuneJob, taken: Sequence[str]) -> list[Line]:
        job = cast("IncrementJob", job)
        tasks, sizes = job.recipe.tasks, job.protocol.sizes
        order = "as listed" if tasks.order is not None else f"in an order by seed {tasks.order_seed}"
        lines = [
            ("tasks", f"{len(sizes)}, of {' + '.join(map(str, sizes))} classes {order}; below is the first"),
            ("strategy", f"{tasks.strategy.name}, {tasks.memory.describe()}"),
        ]
        told = tasks.strategy.plan(len(sizes))
        return [*lines, *([("grows", told)] if told else []), *super().plan(job, taken)]

    @contextmanager
    def held(
        self, job: FinetuneJob, accelerator: Accelerator, lines: Sequence[Line], again: Again
    ) -> Iterator[tuple[Running, Callable[[], None]]]:
        if again.extend is not None:
            raise UserError("--extend: the tasks of an incremental run depend on those before. Set train.epochs anew.")
        recipe = cast("IncrementJob", job).whole
        output = Path(recipe.output)
        lock = claim_together(accelerator, output, "run.output")
        if again.fresh:
            on_main(accelerator, lambda: make_room(output, again.force))

        def note() -> None:
            refuse_another(recipe, "an incremental run")
            write_text(output / "recipe.yaml", dump(recipe))

        on_main(accelerator, note)
        walks = {
            name: self._walk(one, cast("IncrementJob", job), accelerator, lines) for name, one in bounds(recipe).items()
        }
        whole = Walks(recipe, walks)
        yield whole, lambda: say_all(on_main(accelerator, whole.written))
        if lock:
            lock.close()

    def _walk(
        self, recipe: IncrementalRecipe, first: IncrementJob, accelerator: Accelerator, lines: Sequence[Line]
    ) -> Walk:
        """The tasks of a recipe on the images of the run's first task: bounds differ in the sizes of tasks alone."""
        data, images, protocol = first.data, first.everything, recipe.tasks.protocol(first.data.train.classes)

        def job_of_task(number: int) -> FinetuneJob:
            return task_job(recipe, data, images, protocol, number)

        return Walk(self, job_of_task, recipe.tasks, protocol.sizes, Path(recipe.output), accelerator, lines)


class Walks:
    """An incremental run and its bounds, one after another; the run itself is at ""."""

    def __init__(self, recipe: IncrementalRecipe, walks: Mapping[str, Walk]) -> None:
        self.recipe, self.walks = recipe, walks

    def run(self) -> bool:
        """Go through all tasks that are not done; False when a signal stopped one after a checkpoint."""
        return all(walk.run() for walk in self.walks.values())

    def written(self) -> list[str]:
        """Write the report; returns lines about it."""
        output, told, tasks = Path(self.recipe.output), self.recipe.model_dump(mode="json"), self.recipe.tasks
        runs = {name: walk.results() for name, walk in self.walks.items()}
        found = report.document(told, tasks.memory.describe(), runs)
        report.draw(output, found.title, tasks.strategy.name, runs)
        write_text(output / "result.json", as_json.write(found, compact=True))
        write_text(output / "result.md", markdown.write(found))
        write_text(output / "index.html", html.write(found, output))
        own = report.measured(runs[""])
        last = folder_of(output, len(runs[""]) - 1)
        return [
            f"done: average {own.average:.2f} %, last {own.last:.2f} % after {number(len(own.seen), 'task')}",
            f"  page       {output}/index.html",
            f"  result     {output}/result.json, result.md, curve.png, matrix.png",
            f"  export     {last}/export, of the last task; those of the others beside it",
        ]


def say_all(lines: list[str] | None) -> None:
    """Print lines, on the process that has them."""
    for line in lines or ():
        print(line, flush=True)


def bounds(recipe: IncrementalRecipe) -> dict[str, IncrementalRecipe]:
    """The run at "", and where it is wanted plain fine-tuning on the same tasks, and on all classes at once."""
    if not recipe.tasks.bounds:
        return {"": recipe}
    plain = {"strategy": lwf.Config(weight=0.0), "memory": Memory(), "bounds": False, "backbone": "always"}
    lower = recipe.tasks.model_copy(update=plain)

    def changed(name: str, tasks: Tasks) -> IncrementalRecipe:
        run = recipe.run.model_copy(update={"output": f"{recipe.output}/{name}"})
        return recipe.model_copy(update={"tasks": tasks, "run": run})

    upper = lower.model_copy(update={"init": None})  # one task
    return {"": recipe, "finetune": changed("finetune", lower), "joint": changed("joint", upper)}


def everything(recipe: IncrementalRecipe, data: Opened) -> tuple[Labelled, Protocol]:
    """All labelled images, renumbered, and which classes come when. Raises UserError when they cannot be had."""
    check_preprocessing(recipe.encoder, recipe.data)
    images = recipe.task.images(data, None)
    protocol = recipe.tasks.protocol(images.train.classes)
    missing = np.setdiff1d(np.arange(len(images.test.classes)), images.test.labels)
    if len(missing):
        name = images.test.classes[missing[0]]
        raise UserError(
            f"data.val has no picture of {name!r}: every class is tested after its task. Add some, or leave it out."
        )
    return renumbered(images, protocol), protocol


def task_job(
    recipe: IncrementalRecipe, data: Opened, images: Labelled, protocol: Protocol, number: int
) -> IncrementJob:
    """The job of a task, whose earlier ones are done."""
    output, config = Path(recipe.output), cast("Config", recipe.task)
    start = load_start(recipe.encoder, config.view.shape, recipe.data.channels, recipe.adapt, recipe.seed)
    tasks = recipe.tasks

    @cache
    def passed(task: int) -> Passed:
        return Passed.read(folder_of(output, task))

    chain = Chain(config, tasks.strategy, tasks.backbone == "first", protocol, recipe.seed, start.encoder, passed)
    memory = passed(number - 1).kept.memory.numpy() if number else np.zeros(0, dtype=np.int64)
    own = of_task(images, protocol, number, memory)
    counts = np.bincount(own.train.labels, minlength=protocol.known(number)).tolist()
    run = recipe.run.model_copy(update={"output": str(folder_of(output, number))})
    groups, train = None, recipe.train
    if tasks.strategy.draws and len(memory):
        new = np.flatnonzero(own.train.labels >= protocol.old(number))
        remembered = np.flatnonzero(own.train.labels < protocol.old(number))
        draws = tasks.strategy.draws
        groups = Groups((new, *[remembered] * len(draws)), (1, *draws))
        # an epoch is a pass over the new images
        train = train.model_copy(update={"epochs": train.epochs * len(new) * groups.period / len(own.train)})

    named = {"name": f"{recipe.name}.task-{number:02d}", "seed": seed_of(recipe.seed, number)}
    own_recipe = recipe.model_copy(update={**named, "run": run, "train": train})

    def build() -> Increment:
        return chain.network(number, counts).numbered_(cast("Part", own.train).indices)

    ordinary = job_of(own_recipe, data, own, start, build, groups)
    return IncrementJob(**vars(ordinary), whole=recipe, everything=images, protocol=protocol, number=number)


STAGE = Incremental()
