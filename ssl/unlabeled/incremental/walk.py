"""The walk through the tasks: each is an ordinary run in a folder of its own, and the next begins where it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.data.batch.sampler import Order
from unlabeled.data.label.subset import Part
from unlabeled.files import write_text
from unlabeled.incremental import memory
from unlabeled.incremental.chain import Passed
from unlabeled.incremental.method import Increment
from unlabeled.incremental.reading import read
from unlabeled.incremental.recipe import Tasks
from unlabeled.incremental.strategy import After, Kept
from unlabeled.launch.plan import Line
from unlabeled.launch.stage import ONWARDS, opened
from unlabeled.processes import on_main
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.optimizers import sgd
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.result import Scorer
from unlabeled.transfer.tasks.classify import Classifier

DECAY = 5e-4  # weight decay of a head that is trained alone, as in the official codes
DONE = "task.json"  # written last: a task that has it is done


def folder_of(output: Path, task: int) -> Path:
    """Where a task lies."""
    return output / f"task-{task:02d}"


def seed_of(seed: int, task: int) -> int:
    """The seed of a task: the recipe's for the first, so that one task is ordinary fine-tuning."""
    return int(np.random.SeedSequence((seed, task)).generate_state(1)[0]) if task else seed


class Stage(Protocol):
    """The stage of one task, see `unlabeled.stages.incremental`."""

    def scored(self, job: Any, accelerator: Accelerator) -> Job: ...

    def written(self, job: Any, engine: Engine, method: Any, anew: bool) -> list[str]: ...

    def scorer_of(self, job: Job) -> Scorer: ...

    def predict_of(self, job: Job, accelerator: Accelerator) -> Predict: ...


class Walk:
    """The tasks of one protocol and strategy.

    Args:
        stage: of one task.
        job_of: the job of a task, whose earlier ones are done.
        tasks: the section of the recipe.
        sizes: classes of each task.
        output: folder of the tasks.
        lines: of the plan, for the pages.
    """

    def __init__(
        self,
        stage: Stage,
        job_of: Callable[[int], Job],
        tasks: Tasks,
        sizes: Sequence[int],
        output: Path,
        accelerator: Accelerator,
        lines: Sequence[Line],
    ) -> None:
        self.stage, self.job_of, self.tasks, self.sizes = stage, job_of, tasks, sizes
        self.output, self.accelerator, self.lines = output, accelerator, lines

    def run(self) -> bool:
        """Go through the tasks that are not done; False when a signal stopped one after a checkpoint."""
        return all(self._task(number) for number in range(len(self.sizes)))

    def results(self) -> list[dict[str, Any]]:
        """What is known of each task."""
        files = [folder_of(self.output, number) / DONE for number in range(len(self.sizes))]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def _task(self, number: int) -> bool:
        folder = folder_of(self.output, number)
        if (folder / DONE).exists():
            return True
        job = self.job_of(number)
        if number and self.tasks.strategy.reads_first:
            job = self._begun(job)
        job = self.stage.scored(job, self.accelerator)
        with opened(job, self.accelerator, ONWARDS, self.lines) as engine:
            method = engine.method
            assert isinstance(method, Increment)
            trains = method.strategy.trains or (number == 0 and self.tasks.backbone == "first")
            if trains and not engine.run():
                return False
            ended = self._ended(job, engine)
            if ended is None:
                return False
            # the last step was scored by logits: where a linear head names the classes, so is the task
            for line in self.stage.written(job, engine, ended, anew=not method.strategy.linear):
                engine.display.say(line)
            on_main(self.accelerator, lambda: self._leave(folder, job, engine, ended))
        return True

    def _begun(self, job: Job) -> Job:
        """The job of a task whose head begins with what the task's images look like to the network before."""
        method, predict = cast("Increment", job.build()), self.stage.predict_of(job, self.accelerator)
        after = read(method.to(self.accelerator.device), predict, _source(job))

        def build() -> Increment:
            made = cast("Increment", job.build())
            if made.head is not None and not next(made.parameters()).is_meta:
                made.strategy.begun(made.head, after.features, after.labels, made.task)
            return made

        return replace(job, build=build)

    def _ended(self, job: Job, engine: Engine) -> Increment | None:
        """The network at the end of a task, with what passes on; None when a signal stopped it after a checkpoint."""
        method = engine.whole_method()
        assert isinstance(method, Increment)
        task, strategy, before, predict = method.task, method.strategy, method.kept, self.stage.scorer_of(job).predict
        if method.head is not None:
            strategy.ended(method.head, task)
        after = None if self.tasks.memory.none and not strategy.reads_last else read(method, predict, _source(job))
        remembered = before.memory.cpu() if after is None else self._remembered(after, method)
        if strategy.balanced is not None and task.old:
            balanced = self._balanced(job, method, remembered)
            if balanced is None:
                return None
            method = balanced
            after = read(method, predict, _source(job)) if strategy.reads_last else None
        kept = Kept(before.tensors, remembered)
        method.keep(Kept({} if after is None else strategy.learnt(after, task, kept), remembered))
        method.ended = True
        return method

    def _remembered(self, after: After, method: Increment) -> Tensor:
        """Numbers of the images that are remembered after a task, class by class, best first."""
        how, task, before = self.tasks.memory, method.task, method.kept.memory.cpu()
        if how.none:
            return before
        most, label = how.quota(task.classes), dict(zip(after.numbers.tolist(), after.labels.tolist(), strict=True))
        known = [one for one in before.tolist() if one in label]  # without images that cannot be read any more
        old = memory.shrunk(torch.tensor(known, dtype=torch.int64), torch.tensor([label[one] for one in known]), most)
        new = memory.added(after.features, after.labels, after.numbers, task.old, most, how.replacement)
        return torch.cat([old, new])

    def _balanced(self, job: Job, method: Increment, remembered: Tensor) -> Increment | None:
        """The network after the training of its head alone on what is remembered, as many images of every class."""
        how, recipe = method.strategy.balanced, job.recipe
        assert how is not None
        source, numbers = _source(job), np.sort(remembered.numpy())
        part = Part(source.source, numbers)
        part.classes = source.classes
        order = Order(part.labels)
        own = {"epochs": how.epochs, "batch_size": min(recipe.train.batch_size, len(numbers))}
        changed = {
            "name": f"{recipe.name}.balanced",
            "train": recipe.train.model_copy(update=own),
            "optim": sgd.Config(base_lr=how.base_lr, weight_decay=DECAY, warmup_epochs=0),
            "run": recipe.run.model_copy(update={"output": f"{recipe.output}/balanced"}),
        }
        state = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
        second = replace(
            job,
            recipe=recipe.model_copy(update=changed),
            build=lambda: cast("Increment", job.build()).balancing_(state, how),
            dataset=replace(job.dataset, source=part, order=order),
            evaluate=None,
            picture=None,
        )
        with opened(second, self.accelerator, ONWARDS, self.lines) as engine:
            return cast("Increment", engine.whole_method()) if engine.run() else None

    def _leave(self, folder: Path, job: Job, engine: Engine, method: Increment) -> None:
        """Write what passes on, and at last what is known of the task."""
        beside = [] if method.strategy.extends else cast("list[Classifier]", list(method.others))
        models = [method.classifier.exported(), *(one.bare() for one in beside)]
        head = {} if method.head is None else dict(method.head.state_dict())
        Passed(models, head, method.kept).write(folder)
        scorer = self.stage.scorer_of(job)
        outcomes, task_of = scorer.outcomes, np.repeat(np.arange(len(self.sizes)), self.sizes)
        right, tasks = (outcomes.labels == outcomes.predicted).numpy(), task_of[outcomes.labels.numpy()]
        of_each = [right[tasks == number] for number in range(method.task.number + 1)]
        result = {
            "task": method.task.number,
            "classes": list(job.dataset.source.classes[method.task.old :]),
            "accuracy": [100 * float(one.mean()) for one in of_each],
            "pictures": [len(one) for one in of_each],
            "seen": 100 * float(right.mean()),
            "learnt_from": len(job.dataset.source),
            "remembered": len(method.kept.memory),
            "parameters": sum(p.numel() for p in method.parameters()),
            "steps": engine.step,
            "cpu_s": round(scorer.clock.cpu_seconds, 2),
        }
        write_text(folder / DONE, json.dumps(result, indent=1))


def _source(job: Job) -> Part:
    return cast("Part", job.dataset.source)
