"""Pretrain an encoder on pictures without labels: recipe -> method + loader -> engine -> export."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from unlabeled.errors import UserError
from unlabeled.launch.program import main

if TYPE_CHECKING:
    from accelerate import Accelerator

    from unlabeled.launch.plan import Line
    from unlabeled.pretrain.rescale import Rescaled
    from unlabeled.train.engine import Engine
    from unlabeled.train.job import Job


class Pretrain:
    """The pretraining stage."""

    name = "pretrain"
    summary = "Pretrain an encoder on pictures without labels."
    rescaled: list[Rescaled]

    def schema(self) -> Any:
        """The type of its recipes."""
        from unlabeled.launch.schema import pretrain_recipe

        return pretrain_recipe()

    def complete(self, recipe: Any) -> Any:
        """The recipe as it is: it says everything."""
        return recipe

    def job(self, recipe: Any, accelerator: Accelerator) -> Job:
        """Open the pictures and set up method, views and evaluators."""
        from unlabeled.launch.training import pretraining
        from unlabeled.train.job import Job
        from unlabeled.train.pictures import PictureWriter

        training = pretraining(recipe)
        self.rescaled = training.rescaled
        return Job(
            recipe,
            training.build,
            training.dataset,
            self._evaluators(recipe, accelerator),
            {"pictures": training.dataset.source.fingerprint()},
            PictureWriter(Path(recipe.output) / "pictures", recipe.data.mean, recipe.data.std),
        )

    def what(self, recipe: Any, job: Job) -> list[Line]:
        """Its own lines of the plan."""
        from unlabeled.backbone.build import is_cnn

        source = job.dataset.source
        labels = f", {len(source.classes)} classes (not used to pretrain)" if source.classes else ""
        encoder = recipe.method.encoder
        patches = f"stride {encoder.patch_size}" if is_cnn(encoder.model) else f"patch {encoder.patch_size}"
        positions = "" if is_cnn(encoder.model) else f", {encoder.positions} positions"
        model = f"{recipe.method.name} with {encoder.model}, {patches}{positions}"
        changed = [
            ("rescaled", f"{field}: paper {paper:g}, yours {yours:.6g}: {why}")
            for field, paper, yours, why in self.rescaled
        ]
        seen = [] if recipe.evaluate is None else [("evaluate", _evaluated(recipe, job))]
        return [
            ("pictures", f"{len(source):,} from {recipe.data.location}{labels}"),
            ("method", model),
            *seen,
            *changed,
        ]

    def finish(self, recipe: Any, engine: Engine, output: Path) -> list[str]:
        """Export the encoder, with heads and a model card."""
        from unlabeled.backbone.folder import Preprocessing, export_encoder
        from unlabeled.evaluate.evaluation import Evaluation
        from unlabeled.processes import on_main
        from unlabeled.progress import duration
        from unlabeled.report.card import pretrain_card
        from unlabeled.train.heads import split_heads

        method = engine.whole_method()
        encoder, heads = split_heads(method)
        how = recipe.evaluate or Evaluation()
        prepared = Preprocessing.of(recipe.data, how.crop_pct, how.interpolation, how.pool or method.pooling())
        card = pretrain_card(recipe, engine)
        on_main(engine.accelerator, lambda: export_encoder(output / "export", encoder, prepared, card, heads))
        return [
            f"done in {duration(engine.clock.seconds)}: {engine.step:,} steps, {engine.skipped} skipped, "
            f"{len(engine.bad.keys)} bad pictures",
            f"  encoder    {output}/export  (timm.create_model('local-dir:{output}/export', pretrained=True))",
            f"  metrics    {output}/metrics.jsonl   pictures {output}/pictures",
            f"next: python -m unlabeled ladder {quote(f'{output}/export')} {_labelled(recipe, output)}"
            "   (which way to use it pays)",
        ]

    def _evaluators(self, recipe: Any, accelerator: Accelerator) -> Any:
        if recipe.evaluate is None:
            if recipe.data.has_val:  # nothing looks at it now, but what comes later will
                recipe.data.pictures("val")
            return None
        if not recipe.data.has_val:
            raise UserError("evaluate needs labelled pictures, but data.val is null. Set data.val, or evaluate=null.")
        from unlabeled.evaluate.evaluation import Evaluator, Splits

        recipe.evaluate.must_suit(recipe.method.encoder.model)
        rank, world = accelerator.process_index, accelerator.num_processes
        run = recipe.run
        splits = Splits(recipe.evaluate, recipe.data, accelerator.device, run.workers, rank, world, timeout=run.timeout)
        splits.check()
        evaluator = Evaluator(splits, recipe.method.views[0].shape)
        return lambda method: evaluator(next(iter(method.exports().values())), method.pooling())


def _evaluated(recipe: Any, job: Job) -> str:
    """What is measured while it trains, and how pictures become features for it; the export says the same."""
    from unlabeled.launch.plan import on_meta

    how, (height, width) = recipe.evaluate, recipe.method.views[0].shape
    pool = how.pool or f"{on_meta(job.build).pooling()} (as {recipe.method.name} is evaluated)"
    names = ", ".join(protocol.protocol for protocol in how.protocols)
    return f"{names}; size {height}x{width}, crop {how.crop_pct:g}, {how.interpolation}, pooling {pool}"


def _labelled(recipe: Any, output: Path) -> str:
    """What to give a command that asks for labelled pictures: the run itself where it has some."""
    try:
        if recipe.data.has_val and recipe.data.open("train").classes and recipe.data.open("val").classes:
            return quote(str(output))
    except UserError:  # labels that nobody has asked for, and that do not fit
        pass
    return "LABELLED"


if __name__ == "__main__":
    sys.exit(main(Pretrain()))
