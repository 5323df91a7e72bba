"""Fine-tuning as the programs run it: recipe + export -> task -> the same engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from unlabeled.data.source import Source
    from unlabeled.launch.plan import Line
    from unlabeled.train.engine import Engine
    from unlabeled.train.job import Job
    from unlabeled.train.watch import EarlyStopping
    from unlabeled.transfer.labels import Labelled
    from unlabeled.transfer.score import Scorer


class Finetune:
    """The transfer stage."""

    name = "finetune"
    summary = "Fine-tune a pretrained encoder on labelled pictures."
    scorer: Scorer
    taken: Sequence[str] = ()

    def schema(self) -> Any:
        """The type of its recipes."""
        from unlabeled.launch.schema import FinetuneRecipe

        return FinetuneRecipe

    def complete(self, recipe: Any) -> Any:
        """A recipe with what only its encoder can say."""
        from unlabeled.transfer.start import complete

        recipe, self.taken = complete(recipe)
        return recipe

    def job(self, recipe: Any, accelerator: Accelerator) -> Job:
        """Load the backbone, choose the labels, set up the task."""
        from unlabeled.data.batch.sampler import per_process
        from unlabeled.launch.training import finetuning
        from unlabeled.train.job import Job
        from unlabeled.train.pictures import PictureWriter
        from unlabeled.transfer.choice import Choice
        from unlabeled.transfer.score import Scorer

        world, train = accelerator.num_processes, recipe.train
        recipe.task.mixing.check(per_process(train.batch_size, world, recipe.run.accumulate))
        training = finetuning(recipe)
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
        return Job(recipe, training.build, dataset, accuracy, facts, picture, watch)

    def _watch(self, recipe: Any, accelerator: Accelerator, pictures: Labelled) -> EarlyStopping | None:
        from unlabeled.train.schedules import Plateau
        from unlabeled.train.watch import EarlyStopping
        from unlabeled.transfer.score import Scorer

        if recipe.watch is None or pictures.watched is None:
            return None
        schedule = recipe.optim.schedule
        measure = self.scorer.choice or Scorer(recipe, accelerator, pictures.watched, pictures.train.labels)
        return EarlyStopping(recipe.watch, measure, schedule if isinstance(schedule, Plateau) else None)

    def what(self, recipe: Any, job: Job) -> list[Line]:
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
            ("pictures", f"{_count(source)} from {recipe.data.location}, {len(source.classes)} classes{some}"),
            ("backbone", recipe.encoder),
            *([("taken", f"from the encoder: {', '.join(self.taken)}")] if self.taken else []),
            ("task", f"classify, mode {task.mode}, {_reading(task)}"),
            *([("waking", _waking(recipe, job))] if task.mode == "gradual" else []),
            *([("watch", f"{watch.metric} every {watch.every} steps, keep the {watch.keep}")] if watch else []),
        ]

    def finish(self, recipe: Any, engine: Engine, output: Path) -> list[str]:
        """Write result.json and a timm classifier."""
        from unlabeled.processes import on_main
        from unlabeled.progress import duration
        from unlabeled.transfer.exports import export_result
        from unlabeled.transfer.score import write_result

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
    from unlabeled.data.label.part import Part

    whole = len(source.source) if isinstance(source, Part) else len(source)
    return f"{len(source):,}" + (f" of {whole:,}" if whole > len(source) else "")


def _reading(task: Any) -> str:
    """What the head or the heads of a task read."""
    from unlabeled.launch.plan import number

    if task.mode != "sweep":
        return f"pool {'as it was trained' if task.mode == 'retrain' else task.pool}"
    heads = task.sweep.heads(task.pool)
    kinds = dict.fromkeys(f"{head.kind.pool} of {number(head.kind.blocks, 'block')}" for head in heads)
    return f"{number(len(heads), 'head')}: {number(len(task.sweep.rates), 'rate')} x {', '.join(kinds)}"


def _waking(recipe: Any, job: Job) -> str:
    """When layers begin to learn, and how many never do."""
    from unlabeled.launch.plan import on_meta

    method: Any = on_meta(job.build)
    every, epochs, below = recipe.task.wake_every, recipe.train.epochs, max(method.layers.values())
    text = f"{below + 1} layers from the top, one every {every:g} epochs"
    asleep = sum(every * depth >= epochs for depth in range(1, below + 1))
    if not asleep:
        return text
    return f"{text}: {asleep} never learn in {epochs:g} epochs. task.wake_every below {epochs / below:.3g} wakes all"
