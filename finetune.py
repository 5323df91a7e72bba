"""Fine-tune a pretrained encoder on labelled pictures: recipe + export -> task -> the same engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unlabeled.cli import main

if TYPE_CHECKING:
    from accelerate import Accelerator

    from unlabeled.engine import Engine
    from unlabeled.job import Job
    from unlabeled.plan import Line
    from unlabeled.transfer.classify import Classifier
    from unlabeled.transfer.score import Scorer


class Finetune:
    """The transfer stage."""

    name = "finetune"
    summary = "Fine-tune a pretrained encoder on labelled pictures."
    scorer: Scorer

    def schema(self) -> Any:
        """The type of its recipes."""
        from unlabeled.schema import FinetuneRecipe

        return FinetuneRecipe

    def job(self, recipe: Any, accelerator: Accelerator) -> Job:
        """Load the backbone, choose the labels, set up the task."""
        from unlabeled.job import Job
        from unlabeled.training import finetuning
        from unlabeled.transfer.score import Scorer

        build, dataset, _ = finetuning(recipe)
        self.scorer = scorer = Scorer(recipe, accelerator, dataset.source.classes, dataset.source.labels)

        def accuracy(method: Any) -> Iterator[tuple[str, float]]:
            yield "accuracy", scorer(method)["accuracy"]

        return Job(recipe, build, dataset, accuracy, {"pictures": dataset.source.fingerprint()})

    def what(self, recipe: Any, job: Job) -> list[Line]:
        """Its own lines of the plan."""
        task, source = recipe.task, job.dataset.source
        share = f" ({100 * task.fraction:g} % of the labels)" if task.fraction < 1 else ""
        return [
            ("pictures", f"{len(source):,} from {recipe.data.whence}{share}, {len(source.classes)} classes"),
            ("backbone", recipe.encoder),
            ("task", f"classify, mode {task.mode}, pool {task.pool}"),
        ]

    def finish(self, recipe: Any, engine: Engine, output: Path) -> list[str]:
        """Write the result and a timm classifier."""
        from unlabeled.train.distributed import on_main
        from unlabeled.transfer.score import export_classifier, write_result

        method = cast("Classifier", engine.whole_method())
        # the last step was scored; a run that had already ended when it was started again was not
        result = self.scorer.latest or self.scorer(method)

        def write() -> None:
            write_result(output, engine, self.scorer)
            export_classifier(output / "export", method, recipe, engine, result)

        on_main(engine.accelerator, write)
        return [
            f"done: accuracy {result['accuracy']:.2f} % on {result['pictures']:,} pictures",
            f"  result     {output}/result.json, result.md, confusion.png, reliability.png",
            f"  classifier {output}/export  (timm.create_model('local-dir:{output}/export', pretrained=True))",
        ]


if __name__ == "__main__":
    sys.exit(main(Finetune()))
