"""The rungs: what needs no pretraining, two probes of frozen features, and ways of training, each a complete recipe."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unlabeled.accelerator import make_accelerator
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.pooling import Pixels
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.opened import Opened
from unlabeled.errors import Interrupted, UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.comparison import PIXELS_SIDE, prepared_as, protocols_of, untrained_twin
from unlabeled.evaluate.evaluation import measured
from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.splits import Splits
from unlabeled.ladder.amount import Amount
from unlabeled.launch.stage import opened
from unlabeled.recipe import RecipeError, differences, format_differences, load, parse
from unlabeled.recipe.free import is_free
from unlabeled.report.clock import Clock
from unlabeled.stages.finetune import Finetune, FinetuneRecipe

# what an encoder must be better than: majority of the labels, and linear probes of pixels and of random weights
BASELINES = ("majority", "pixels", "untrained")
PROBES = ("knn", "linear")
TUNED: dict[str, dict[str, Any]] = {
    "attentive": {"task": {"strategy": {"name": "attentive"}}, "optim": {"base_lr": 1e-3, "weight_decay": 0.01}},
    "lora": {"task": {"strategy": {"name": "lora"}}, "optim": {"base_lr": 2e-3, "weight_decay": 0.01}},
    "layer_decay": {
        "task": {"strategy": {"name": "differential", "layer_decay": 0.75, "drop_path": 0.1}},
        "optim": {"base_lr": 1e-3, "weight_decay": 0.05},
    },
    "scratch": {
        "task": {"strategy": {"name": "full", "drop_path": 0.1}},
        "optim": {"base_lr": 1e-3, "weight_decay": 0.05},
    },
}
WAYS = (*PROBES, *TUNED)
RUNGS = (*BASELINES, *WAYS)
UNPRETRAINED = (*BASELINES, "scratch")
# the protocol that reads a rung's features
PROTOCOL = {"pixels": "linear", "untrained": "linear"}


class RungResult(NamedTuple):
    """A rung on an amount of labels: top-1 accuracy in percent for each seed, and the cost of one.

    Attributes:
        rung: its name.
        fraction: share of the labels.
        accuracies: one per seed.
        seconds: CPU time of one seed, the pass over the pictures included.
        shots: labels of every class; None = a share.
        labels: how many labels that is.
        pictures: that were tested on.
    """

    rung: str
    fraction: float
    accuracies: list[float]
    seconds: float
    shots: int | None = None
    labels: int = 0
    pictures: int = 0

    @property
    def amount(self) -> Amount:
        """Of the labels."""
        return Amount(self.fraction, self.shots)

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
        data: labelled images.
        shape: (height, width) of what the encoder sees, pixels.
        how: pictures become features.
        options: of the command line.
        device: where everything runs.
    """

    export: str
    data: Opened
    shape: tuple[int, int]
    how: Preprocessing
    options: argparse.Namespace
    device: torch.device


def guessed(climb: Climb) -> Iterator[RungResult]:
    """Calling every picture the class that most of the labels are of."""
    splits = splits_of(climb)
    train, test = splits.sources
    truth = test.labels[test.labels >= 0]
    for amount in climb.options.amounts:
        clock, found, labels = Clock(), [], np.empty(0)
        for seed in seeds_of(amount, climb.options.seeds):
            labels = train.labels[amount.choose(train.labels, seed, train.classes)]
            found.append(100 * float((truth == np.bincount(labels[labels >= 0]).argmax()).mean()))
        cost = clock.cpu_seconds / len(found)
        yield RungResult("majority", amount.fraction, found, cost, amount.shots, len(labels), len(truth))


def probed(climb: Climb, rungs: Sequence[str]) -> Iterator[RungResult]:
    """Rungs that are read out of frozen features of one encoder: one pass over the pictures, then all amounts and
    seeds."""
    options, clock = climb.options, Clock()
    encoder, shape = _encoder(climb, rungs[0])
    bench = Bench(encoder.to(climb.device), splits_of(climb), shape)
    bench.features()
    looking = clock.cpu_seconds
    for rung in rungs:
        for amount in options.amounts:
            seeds, clock = seeds_of(amount, options.seeds), Clock()
            benches = [bench.few(amount.fraction, seed, amount.shots) for seed in seeds]
            scores = [measured(rung, probe_of(climb, rung), one)[0].value for one in benches]
            train, test = benches[0].features()
            cost = looking + clock.cpu_seconds / len(scores)
            yield RungResult(rung, amount.fraction, scores, cost, amount.shots, len(train.y), len(test.y))


def _encoder(climb: Climb, rung: str) -> tuple[Any, tuple[int, int]]:
    """What makes the features of a rung, and the size of its images."""
    if rung == "pixels":
        return Pixels(), (min(climb.shape[0], PIXELS_SIDE), min(climb.shape[1], PIXELS_SIDE))
    encoder = load_encoder(climb.export)
    return untrained_twin(encoder) if rung == "untrained" else encoder, climb.shape


def splits_of(climb: Climb) -> Splits:
    """The labelled pictures as probes read them. Raises UserError when an option does not fit."""
    return Splits(prepared_as(climb.how), climb.data, climb.device, climb.options.workers)


def probe_of(climb: Climb, rung: str) -> Protocol:
    """The protocol of a rung that is read out of frozen features; `--set` has the last word.

    Raises:
        UserError: something in it is wrong.
    """
    name, start = PROTOCOL.get(rung, rung), f"{rung}."
    changes = [f"{name}.{one.removeprefix(start)}" for one in climb.options.set if one.startswith(start)]
    return protocols_of([name], changes)[name]


def tuned(climb: Climb, rung: str) -> Iterator[RungResult]:
    """A rung that is trained, on every amount of labels. What an earlier climb has finished is not trained again."""
    for amount in climb.options.amounts:
        results = [_train(recipe_of(climb, rung, amount, seed)) for seed in range(climb.options.seeds)]
        seconds, accuracies = (
            statistics.mean(result["cost"]["cpu_s"] for result in results),
            [result["accuracy"] for result in results],
        )
        labels, pictures = results[0]["protocol"]["labelled_pictures"], results[0]["pictures"]
        yield RungResult(rung, amount.fraction, accuracies, seconds, amount.shots, labels, pictures)


def seeds_of(amount: Amount, count: int) -> range:
    """What is read from all labels is the same whatever the seed."""
    return range(1 if amount.all else count)


def recipe_of(climb: Climb, rung: str, amount: Amount, seed: int) -> FinetuneRecipe:
    """The recipe of a rung that is trained, as finetune.py reads it; `--set` has the last word.

    Raises:
        UserError: something in it is wrong.
    """
    options, how, own, name = climb.options, climb.how, TUNED[rung], f"{rung}_{amount.key}_seed{seed}"
    batch, epochs = _length(climb, amount, seed)
    task = {
        # a timm classifier reads no two kinds of tokens
        "pool": "attention" if rung == "attentive" else "cls" if how.pool == "cls_mean" else how.pool,
        "view": {"size": list(climb.shape), "scale": [options.min_scale, 1.0]},
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


def _length(climb: Climb, amount: Amount, seed: int) -> tuple[int, float]:
    """Batch size and epochs of `--steps` steps on some of the labels, which must fill a batch."""
    train = climb.data.train
    labels = len(amount.choose(train.labels, seed, train.classes))
    batch = min(climb.options.batch_size, max(2, labels // 4))
    return batch, climb.options.steps / (labels // batch)


def _train(recipe: FinetuneRecipe) -> dict[str, Any]:
    """The result of a fine-tuning, which goes on from where an earlier one was left."""
    output = Path(recipe.output)
    if (output / "result.json").exists():
        kept: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
        return kept
    stage, run = Finetune(), recipe.run
    accelerator = make_accelerator(run.device, recipe.train.precision, run.timeout, [], recipe.output)
    job = stage.scored(stage.job(recipe, Opened(recipe.data)), accelerator)
    with opened(job, accelerator) as engine:
        if not engine.run():
            raise Interrupted(f"stopped in {output}. The same command goes on from there.")
        for line in stage.finish(job, engine):
            engine.display.say(line)
    result: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return result


def refuse_another(recipe: FinetuneRecipe) -> None:
    """Raise UserError when a rung's folder holds one that was trained otherwise."""
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return
    before = load(type(recipe), output / "recipe.yaml")
    changed = [d for d in differences(before, recipe) if not is_free(type(recipe), d.path)]
    if changed:
        raise UserError(
            f"{output} holds a rung of another recipe:\n{format_differences(changed)}\nChoose another --out, or remove "
            "it."
        )
