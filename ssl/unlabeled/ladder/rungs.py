"""The rungs: two probes of frozen features and three ways of fine-tuning, each a complete recipe."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from unlabeled.errors import Interrupted, UserError
from unlabeled.evaluate.base import Protocol
from unlabeled.evaluate.protocol import Evaluation, Splits, measured
from unlabeled.report.clock import Clock

if TYPE_CHECKING:
    from unlabeled.export import Preprocessing

PROBES = ("knn", "linear")
TUNED: dict[str, dict[str, Any]] = {
    "attentive": {"task": {"mode": "attentive"}, "optim": {"base_lr": 1e-3, "weight_decay": 0.01}},
    "lora": {"task": {"mode": "lora"}, "optim": {"base_lr": 2e-3, "weight_decay": 0.01}},
    "layer_decay": {
        "task": {"mode": "differential_lr", "layer_decay": 0.75, "drop_path": 0.1},
        "optim": {"base_lr": 1e-3, "weight_decay": 0.05},
    },
}
RUNGS = (*PROBES, *TUNED)
NEEDS_ATTENTION = ("attentive", "lora")


class Step(NamedTuple):
    """A rung on a share of the labels: top-1 in percent for each seed, and what one of them costs.

    Attributes:
        rung: its name.
        fraction: share of the labels.
        accuracies: one per seed.
        seconds: CPU time of one seed, the pass over the pictures included.
    """

    rung: str
    fraction: float
    accuracies: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Of the seeds; 0 of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


class Climb(NamedTuple):
    """What a ladder is climbed with.

    Attributes:
        export: the encoder's folder.
        data: a recipe's `data:` section.
        shape: (height, width) of what the encoder sees, pixels.
        how: pictures become features.
        options: of the command line.
        device: where everything runs.
    """

    export: str
    data: Any
    shape: tuple[int, int]
    how: Preprocessing
    options: argparse.Namespace
    device: torch.device


def probed(climb: Climb, rungs: Sequence[str]) -> Iterator[Step]:
    """Rungs that are read out of frozen features: one pass over the pictures, then every share and seed."""
    from unlabeled.evaluate.bench import Bench
    from unlabeled.export import load_encoder

    options, clock = climb.options, Clock()
    bench = Bench(load_encoder(climb.export).to(climb.device), splits_of(climb), climb.shape)
    bench.features()
    looking = clock.cpu_seconds
    for rung in rungs:
        for fraction in options.fractions:
            seeds, clock = seeds_of(fraction, options.seeds), Clock()
            scores = [measured(probe_of(climb, rung), bench.few(fraction, seed))[0].value for seed in seeds]
            yield Step(rung, fraction, scores, looking + clock.cpu_seconds / len(scores))


def splits_of(climb: Climb) -> Splits:
    """The labelled pictures as probes read them. Raises UserError when an option does not fit."""
    from unlabeled.evaluate.command import prepared_as

    return Splits(prepared_as(Evaluation(), climb.how), climb.data, climb.device, climb.options.workers)


def probe_of(climb: Climb, rung: str) -> Protocol:
    """The protocol of a rung that is read out of frozen features; `--set` has the last word.

    Raises:
        UserError: something in it is wrong.
    """
    from unlabeled.evaluate.command import settings

    return settings([rung], [change for change in climb.options.set if change.startswith(f"{rung}.")])[0]


def tuned(climb: Climb, rung: str) -> Iterator[Step]:
    """A rung that is trained, on every share. What an earlier climb has finished is not trained again."""
    for fraction in climb.options.fractions:
        results = [_train(recipe_of(climb, rung, fraction, seed)) for seed in range(climb.options.seeds)]
        seconds = statistics.mean(result["cost"]["cpu_s"] for result in results)
        yield Step(rung, fraction, [result["accuracy"] for result in results], seconds)


def seeds_of(fraction: float, count: int) -> range:
    """Probes of all labels are the same whatever the seed."""
    return range(1 if fraction == 1 else count)


def recipe_of(climb: Climb, rung: str, fraction: float, seed: int) -> Any:
    """The recipe of a rung that is trained, as finetune.py reads it; `--set` has the last word.

    Raises:
        UserError: something in it is wrong.
    """
    from unlabeled.recipe import RecipeError, parse
    from unlabeled.schema import FinetuneRecipe

    options, how, own, name = climb.options, climb.how, TUNED[rung], f"{rung}_{100 * fraction:g}pct_seed{seed}"
    batch, epochs = _length(climb, fraction, seed)
    task = {
        # a timm classifier reads no two kinds of tokens
        "pool": "attention" if rung == "attentive" else "cls" if how.pool == "cls_mean" else how.pool,
        "view": {"size": list(climb.shape), "scale": [options.min_scale, 1.0]},
        "crop_pct": how.crop_pct,
        "interpolation": how.interpolation,
        "fraction": fraction,
        "fraction_seed": seed,
    }
    content = {
        "name": name,
        "seed": seed,
        "encoder": climb.export,
        "data": climb.data.model_dump(mode="json"),
        "task": {**task, **own["task"]},
        "optim": {"lr_rule": "none", "betas": [0.9, 0.999], "clip": 1.0, "warmup_epochs": epochs / 10, **own["optim"]},
        "train": {"epochs": epochs, "batch_size": batch},
        "run": {"output": str(options.out / name), "workers": options.workers, "checkpoint_every": 500},
    }
    content["optim"]["name"] = "adamw"
    changes = [change.removeprefix(f"{rung}.") for change in options.set if change.startswith(f"{rung}.")]
    try:
        return parse(FinetuneRecipe, json.dumps(content), changes)
    except RecipeError as error:
        raise UserError(f"rung {rung}: {error}") from error


def _length(climb: Climb, fraction: float, seed: int) -> tuple[int, float]:
    """Batch size and epochs of `--steps` steps on a share of the labels, which must fill a batch."""
    from unlabeled.data.subset import stratified

    train = climb.data.open("train")
    labels = len(stratified(train.labels, fraction, seed, names=train.classes))
    batch = min(climb.options.batch_size, max(2, labels // 4))
    return batch, climb.options.steps / (labels // batch)


def _train(recipe: Any) -> dict[str, Any]:
    """The result of a fine-tuning, which goes on from where an earlier one was left."""
    from unlabeled.cli import train
    from unlabeled.train.distributed import make_accelerator
    from unlabeled.train.signals import EXIT_DONE
    from unlabeled.transfer.stage import Finetune

    output = Path(recipe.output)
    if (output / "result.json").exists():
        kept: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
        return kept
    stage, run = Finetune(), recipe.run
    accelerator = make_accelerator(run.device, recipe.train.precision, run.timeout, [], recipe.output)
    job = stage.job(recipe, accelerator)
    options = argparse.Namespace(fresh=False, force=False, longer=False, extend=None)
    if train(stage, recipe, job, accelerator, output, options) != EXIT_DONE:
        raise Interrupted(f"stopped in {output}. The same command goes on from there.")
    result: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return result


def refuse_another(recipe: Any) -> None:
    """Raise UserError when a rung's folder holds one that was trained otherwise."""
    from unlabeled.recipe import differences, format_differences, load
    from unlabeled.schema import is_free

    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return
    before = load(type(recipe), output / "recipe.yaml")
    changed = [d for d in differences(before, recipe) if not is_free(d.path)]
    if changed:
        raise UserError(
            f"{output} holds a rung of another recipe:\n{format_differences(changed)}\nChoose another --out, or remove "
            "it."
        )
