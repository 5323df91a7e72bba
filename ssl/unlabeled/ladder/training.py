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
from unlabeled.ladder.rungs import Climb, RungResult
from unlabeled.ladder.ways import TUNED
from unlabeled.launch.stage import opened
from unlabeled.recipe import RecipeError, differences, format_differences, load, parse
from unlabeled.recipe.free import is_free
from unlabeled.stages.finetune import Finetune, FinetuneRecipe


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
    batch, epochs = _length(climb, amount, seed)
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


def _length(climb: Climb, amount: Amount, seed: int) -> tuple[int, float]:
    """Batch size, at most a quarter of the labels, and the epochs that make `steps` steps of it."""
    train = climb.data.train
    labels = len(amount.choose(train.labels, seed, train.classes))
    batch = min(climb.batch_size, max(2, labels // 4))
    return batch, climb.steps / (labels // batch)


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


def refuse_another(recipe: FinetuneRecipe) -> None:
    """Raise UserError when a rung's folder holds a run of another recipe."""
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return
    before = load(type(recipe), output / "recipe.yaml")
    if changed := [d for d in differences(before, recipe) if not is_free(type(recipe), d.path)]:
        raise UserError(
            f"{output} holds a rung of another recipe:\n{format_differences(changed)}\nChoose another --out, or remove "
            "it."
        )
