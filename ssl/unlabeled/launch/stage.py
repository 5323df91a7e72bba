"""The contract of a stage, and the way from its recipe to an engine that is ready to train."""

from __future__ import annotations

import fnmatch
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from unlabeled.accelerator import cannot_run, make_accelerator
from unlabeled.data.archive.listing import IndexFolder, Split
from unlabeled.data.archive.skipped import in_words
from unlabeled.data.label.overlap import how_to_tell_apart
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.environment import overruled
from unlabeled.errors import UserError, first_line
from unlabeled.evaluate.features import Encode
from unlabeled.files import remove, write_text
from unlabeled.launch import accumulation, forecast, nodes
from unlabeled.launch.plan import Line, format_plan, on_meta, plan
from unlabeled.launch.record import recorded
from unlabeled.launch.resume import length, resume
from unlabeled.launch.sides import TABLE, held_out, write_sides
from unlabeled.paths import expand
from unlabeled.pretrain.continued import Caution
from unlabeled.pretrain.method import Method
from unlabeled.processes import claim_together, cores, cores_each, on_main, together
from unlabeled.recipe import describe, dump, load, said
from unlabeled.recipe.shipped import PROGRAMS, find
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.recipe import ELSEWHERE, Recipe, Run
from unlabeled.train.tracker import check_installed

R = TypeVar("R", bound=Recipe)
J = TypeVar("J", bound=Job)

# everything that a run leaves in its output folder, for --fresh --force to remove
OWN = (
    "checkpoints",
    "export",
    ".export-writing",
    ".export-former",
    "logs",
    "pictures",
    "look",
    "index.html",
    "index.html.writing",
    "plan.json",
    "events.jsonl",
    "metrics.jsonl",
    "bad_samples.jsonl",
    "recipe.yaml",
    TABLE,
    f"evaluate_{TABLE}",
    "result.json",
    "result.md",
    "errors.csv",
    "confusion.png",
    "reliability.png",
    "curve.png",
    "matrix.png",
    "task-*",
    "joint",
    "finetune",
    "detections.jpg",
    "detections.json",
    "segments.jpg",
)


class Again(NamedTuple):
    """What is done with an earlier run in the output folder.

    Attributes:
        fresh: start over, which is refused where there is one unless `force` removes it.
        longer: whether the run is longer than its recipe, by `--extend` now or before.
        extend: epochs to add, of the command line; None = not given.
    """

    fresh: bool = False
    force: bool = False
    longer: bool = False
    extend: float | None = None


ONWARDS = Again()


class Running(Protocol):
    """What a stage runs: an engine, or several one after another."""

    def run(self) -> bool:
        """Train; False when a signal stopped it after a checkpoint."""


class Stage(ABC, Generic[R, J]):
    """One of the programs: the type of its recipes, their job, their lines of the plan, and the results.

    It stores nothing: everything that a call finds out is in the job that it returns.
    """

    name: ClassVar[str]
    recipe_type: type[R]

    def load(self, path: str | Path, overrides: Sequence[str] = ()) -> tuple[R, Sequence[str]]:
        """Read a recipe, see `unlabeled.recipe.load`. Fields that decide whether others are right, and that only a file
        named in it can tell, are filled in before; returns these as `a.b=value` too."""
        return load(self.recipe_type, path, overrides), ()

    def complete(self, recipe: R) -> tuple[R, Sequence[str]]:
        """Fill in fields that only a file named in the recipe can tell; returns these as `a.b=value` too."""
        return recipe, ()

    @abstractmethod
    def job(self, recipe: R, data: Opened) -> J:
        """Set up the network for the images of a recipe. Raises UserError when they cannot be had, or do not fit."""

    @abstractmethod
    def scored(self, job: J, accelerator: Accelerator) -> J:
        """Add to a job its evaluation, its facts and its pictures. Raises UserError when it cannot be evaluated."""

    @abstractmethod
    def plan(self, job: J, taken: Sequence[str]) -> list[Line]:
        """Its own lines of the plan; `taken` are the fields that `load` and `complete` filled in."""

    def cautions(self, job: J) -> list[Caution]:
        """Settings that would ruin weights which the run begins with; they stand in the plan, too."""
        return []

    @abstractmethod
    def finish(self, job: J, engine: Engine) -> list[str]:
        """Write the results of a run; returns lines about them."""

    @abstractmethod
    def evaluated(self, recipe: R) -> tuple[Split, ...]:
        """The splits that an evaluation reads; () = there is none."""

    @abstractmethod
    def encoder(self, job: J, method: Method) -> Encode:
        """The forward pass of an evaluation."""

    @contextmanager
    def held(
        self, job: J, accelerator: Accelerator, lines: Sequence[Line], again: Again
    ) -> Iterator[tuple[Running, Callable[[], None]]]:
        """Hold the output folder of a job; yields what runs, and the function that writes its results."""
        with opened(job, accelerator, again, lines) as engine:

            def finish() -> None:
                done, *made = self.finish(job, engine)
                page = [f"  page       {engine.output}/index.html"] if job.recipe.run.page else []
                for line in (done, *page, *made):
                    engine.display.say(line)

            yield engine, finish

    def tested(self, recipe: R, labelled: Opened) -> Source:
        """The images to evaluate on, of the section that names them. Raises UserError when they cannot be had."""
        return labelled.val

    def check_evaluation(self, recipe: R, data: Opened) -> None:
        """Raise UserError when the images of `evaluated` do not suit the evaluation."""

    def describe(self, section: str = "") -> str:
        """Every field of its recipes, or those of a section, see `unlabeled.recipe.describe`."""
        return describe(self.recipe_type, section)

    @contextmanager
    def begun(
        self,
        word: str,
        overrides: Sequence[str],
        *,
        dry_run: bool = False,
        fresh: bool = False,
        force: bool = False,
        extend: float | None = None,
    ) -> Iterator[tuple[Running, Callable[[], None]] | None]:
        """Read a recipe, print the plan, and hand over what runs, where an earlier run stopped, and its `finish`.

        None after a dry run. The arguments are those of the command line.
        """
        file = find(expand(word), self.name)
        _refuse_the_other_programs(self, file)
        recipe, followed = self.load(file, overrides)
        output, asked = Path(recipe.output), recipe.train.epochs
        epochs = asked if fresh else length(output, asked, extend)
        if epochs != asked:
            recipe, followed = self.load(file, [*overrides, f"train.epochs={epochs!r}"])
        recipe, taken = self.complete(recipe)
        run, train = recipe.run, recipe.train
        notes = _notes(run, train.precision)
        if not dry_run:
            check_installed(run.trackers)
        accelerator = make_accelerator(run.device, train.precision, run.timeout, planning=dry_run)
        writes = accelerator.is_main_process and not dry_run  # copies on other machines have other dates
        data = Opened(recipe.data, IndexFolder(output / "index", writes))
        try:
            # one process looks for images, the others read its index
            on_main(accelerator, lambda: data.train, whole=False)
            with together():
                processes = accelerator.num_processes
                job, parts = accumulation.found(self.job(recipe, data), None if fresh else output, processes)
                job = self.scored(job, accelerator)
            machines = nodes.agree(job)
            if dry_run:
                notes = [_time(job, accelerator), *notes]
            told = plan(job, [*self.plan(job, [*followed, *taken]), *parts], processes, str(accelerator.device))
            lines = [*told, *_left_out(job), *machines, *notes]
            text = format_plan(f"{recipe.name} ({self.name})", lines)
            if accelerator.is_main_process:
                print(text, file=sys.stderr, flush=True)
            if dry_run:
                yield None
                return
            with self.held(job, accelerator, lines, Again(fresh, force, epochs != asked, extend)) as running:
                yield running
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


@contextmanager
def opened(job: Job, accelerator: Accelerator, again: Again = ONWARDS, lines: Sequence[Line] = ()) -> Iterator[Engine]:
    """Hold the output folder of a job; yields its engine, where an earlier run stopped. `lines` of the plan are for
    the page of the run."""
    output = Path(job.recipe.output)
    lock = claim_together(accelerator, output, "run.output")
    if again.fresh:
        on_main(accelerator, lambda: make_room(output, again.force))
    engine = Engine(job, accelerator, output)
    resume(engine, again.longer, again.extend)
    if accelerator.is_main_process:
        write_text(output / "recipe.yaml", dump(job.recipe))
        write_sides(output / TABLE, job.data)
        write_sides(output / f"evaluate_{TABLE}", job.data.other(ELSEWHERE, job.recipe.elsewhere))
    with recorded(engine, lines):
        yield engine
    if lock:
        lock.close()


def _refuse_the_other_programs(stage: Stage[R, J], path: Path) -> None:
    found = said(path)
    for field, program in PROGRAMS.items():
        if field in found and field not in stage.recipe_type.model_fields:
            right, here = f"unlabeled {program}", f"unlabeled {stage.name}"
            raise UserError(f"{path} has `{field}`, so it is a recipe for `{right}`; this is `{here}`. Use the other.")


def _notes(run: Run, precision: str) -> list[Line]:
    """Lines of the plan about this machine and its environment."""
    lacking, ignored = cannot_run(run.device, precision), overruled(precision)
    lines = [("machine", f"this one cannot run it: {lacking}")] if lacking else []
    here, each = cores(), cores_each()
    if run.workers > each:
        workers = run.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        lines.append(("workers", f"{workers} loader workers, {here} cores here: run.workers={each} is enough"))
    if ignored:
        lines.append(("launcher", f"{', '.join(ignored)}: not followed, the recipe decides"))
    return lines


def _time(job: Job, accelerator: Accelerator) -> Line:
    """The line of the plan about how long the run would take here."""
    method, processes = on_meta(job.trained), accelerator.num_processes
    try:
        text = forecast.in_words(forecast.forecast(job, method, processes, accelerator.device))
    except (UserError, RuntimeError) as error:  # a plan is worth having without it: a full GPU, an image that is gone
        text = f"not known: {first_line(error)}"
    return "time", text


def _left_out(job: Job) -> Iterator[Line]:
    """Lines of the plan about files and images that are not used, or used although they may not be meant to be."""
    config, train = job.recipe.data, job.dataset.source
    labelled = job.data.other(ELSEWHERE, job.recipe.elsewhere)
    yield from (("split", f"{text}; listed in {job.recipe.output}/{TABLE}") for text in held_out(job.data))
    if labelled is not job.data:
        yield from (("split", f"{ELSEWHERE}: {text}") for text in held_out(labelled))
    splits = {"train": train}
    if labelled.config.has_val and job.evaluate is not None:
        with suppress(UserError):  # images without labels will do where an evaluation reads none
            splits["val"] = labelled.val
    yield from (("skipped", f"{name}: {in_words(n)}") for name, source in splits.items() if (n := source.skipped))
    if count := train.unlabelled:
        yield "unlabelled", f"{count:,} of the pictures of train have no label and are left out"
    if folders := config.read_as_one(train.whole):
        yield "as one", f"{', '.join(folders)} are all trained on; {how_to_tell_apart(folders)}"


def make_room(output: Path, force: bool) -> None:
    """Remove what an earlier run left in its folder. Raises UserError where there is something and no `force`."""
    here = os.listdir(output)
    left = [name for pattern in OWN for name in sorted(fnmatch.filter(here, pattern))]
    if left and not force:
        found = f"{output} holds an earlier run ({', '.join(left)})"
        raise UserError(f"{found}. Add --force to remove it, or choose another run.output.")
    for name in left:
        remove(output / name)  # a link goes, what it leads to stays
