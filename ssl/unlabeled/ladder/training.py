"""Rungs that are trained: each a complete recipe for `unlabeled finetune`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlabeled.accelerator import make_accelerator
from unlabeled.data.opened import Opened
from unlabeled.errors import Interrupted, UserError
from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import TRAIN, Climb, RungResult
from unlabeled.ladder.ways import TUNED
from unlabeled.launch.stage import opened
from unlabeled.recipe import RecipeError, parse
from unlabeled.stages.finetune import Finetune, FinetuneRecipe
from unlabeled.transfer.unlabelled import FIELD, Unlabelled

RATIO, MOMENTUM = 1, 0.99  # unlabelled images for each labelled one; of thresholds, in a climb's few steps


def tuned(climb: Climb, rung: str) -> Iterator[RungResult]:
    """Train a rung on every amount of labels; finished runs of an earlier climb are kept."""
    for amount in climb.amounts:
        results = [_train(recipe_of(climb, rung, amount, seed)) for seed in range(climb.seeds)]
        seconds = statistics.mean(result["cost"]["cpu_s"] for result in results)
        accuracies = [result["accuracy"] for result in results]
        labels, pictures = results[0]["protocol"]["labelled_pictures"], results[0]["pictures"]
        yield RungResult(rung, amount.fraction, accuracies, seconds, amount.shots, labels, pictures)


def recipe_of(climb: Climb, rung: str, amount: Amount, seed: int) -> FinetuneRecipe:
    """The recipe of a rung. Raises UserError when a setting does not fit."""
    how, name = climb.how, f"{rung}_{amount.key}_seed{seed}"
    strategy, base_lr, weight_decay = TUNED[rung]
    unlabelled = without_labels(climb) if rung == "unlabelled" else None
    batch, epochs = _length(climb, amount, seed, unlabelled)
    optim = {"name": "adamw", "lr_rule": "none", "betas": [0.9, 0.999], "clip": 1.0, "warmup_epochs": epochs / 10}
    task = {
        "strategy": strategy,
        # a timm classifier reads no two kinds of tokens
        "pool": "attention" if rung == "attentive" else "cls" if how.pool == "cls_mean" else how.pool,
        "view": {"size": list(climb.shape), "scale": [climb.min_scale, 1.0]},
        "crop_pct": how.crop_pct,
        "interpolation": how.interpolation,
        "fraction": amount.fraction,
        "shots": amount.shots,
        "fraction_seed": seed,
        **({} if unlabelled is None else {"unlabelled": unlabelled}),
    }
    content: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "encoder": f"scratch:{climb.export}" if rung == "scratch" else climb.export,
        "data": climb.data.config.model_dump(mode="json"),
        "task": task,
        "optim": {**optim, "base_lr": base_lr, "weight_decay": weight_decay},
        "train": {"epochs": epochs, "batch_size": batch},
        "run": {"output": str(climb.out / name), "workers": climb.workers, "checkpoint_every": 500},
    }
    try:
        return parse(FinetuneRecipe, json.dumps(content), climb.of(rung))
    except RecipeError as error:
        raise UserError(f"rung {rung}: {error}") from error


def without_labels(climb: Climb) -> dict[str, Any]:
    """The section of images without labels of the rung's recipe."""
    where = None if climb.unlabelled == TRAIN else climb.unlabelled
    return {"data": where, "ratio": RATIO, "threshold": {"name": "adaptive", "momentum": MOMENTUM}}


def learnt_from(climb: Climb, amount: Amount, seed: int, unlabelled: dict[str, Any] | None) -> int:
    """The number of labelled images of a rung, and of those without labels where it has a section for them."""
    train = climb.data.train
    labels = len(amount.choose(train.labels, seed, train.classes))
    if unlabelled is None:
        return labels
    other = Unlabelled.model_validate(unlabelled).seeing(climb.data.config)
    return labels + len(train if other is None else climb.data.other(FIELD, other).pictures("train"))


def _length(climb: Climb, amount: Amount, seed: int, unlabelled: dict[str, Any] | None) -> tuple[int, float]:
    """Batch size, with at most a quarter of the labels, and the epochs that make `steps` steps of it."""
    labels = learnt_from(climb, amount, seed, None)
    batch = min(climb.batch_size, max(2, labels // 4)) * (1 if unlabelled is None else 1 + RATIO)
    return batch, climb.steps / (learnt_from(climb, amount, seed, unlabelled) // batch)


def _train(recipe: FinetuneRecipe) -> dict[str, Any]:
    """The result of a fine-tuning; a finished run is kept, an interrupted one resumed."""
    output = Path(recipe.output)
    if not (output / "result.json").exists():
        stage, run = Finetune(), recipe.run
        accelerator = make_accelerator(run.device, recipe.train.precision, run.timeout)
        job = stage.scored(stage.job(recipe, Opened(recipe.data)), accelerator)
        with opened(job, accelerator) as engine:
            if not engine.run():
                raise Interrupted(f"stopped in {output}. The same command goes on from there.")
            for line in stage.finish(job, engine):
                engine.display.say(line)
    result: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return result
