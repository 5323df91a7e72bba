"""One step of the engine in this process: what of a recipe reaches the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import counted
from torch import Tensor

from unlabeled.accelerator import make_accelerator
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.opened import Opened
from unlabeled.data.orders import keyed
from unlabeled.stages.finetune import STAGE, FinetuneRecipe
from unlabeled.train.engine import Engine

SHAPES = {"name": "shapes", "train_size": 40, "val_size": 20, "size": 16}


def engine(folder: Path, task: dict[str, Any], optim: dict[str, Any], **more: Any) -> Engine:
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(folder / "export", encoder, IMAGENET, "# card\n", {})
    plain = {"name": "sgd", "base_lr": 1.0, "lr_rule": "none", "momentum": 0.0, "weight_decay": 0.0}
    recipe = FinetuneRecipe.model_validate(
        {
            "name": "it",
            "encoder": str(folder / "export"),
            "data": SHAPES,
            "task": {"view": {"size": 16}, **task},
            "optim": {**plain, **optim},
            "train": {"epochs": 4, "batch_size": 8},
            "run": {"device": "cpu", "workers": 0},
            **more,
        }
    )
    accelerator = make_accelerator("cpu", "no", 60.0)
    return Engine(STAGE.scored(STAGE.job(recipe, Opened(recipe.data)), accelerator), accelerator, folder / "run")


def moved(folder: Path, task: dict[str, Any], run: dict[str, Any] | None = None, **optim: Any) -> dict[str, Tensor]:
    """How far a step takes every parameter that it changes."""
    made = engine(folder, task, optim, run={"device": "cpu", "workers": 0, **(run or {})})
    made.model.train()
    before = {name: parameter.detach().clone() for name, parameter in made.method.named_parameters()}
    feed = made._feed()
    made.rehearse(feed.next()[0])
    feed.close()
    steps = {name: parameter.detach() - before[name] for name, parameter in made.method.named_parameters()}
    return {name: step for name, step in steps.items() if step.any()}


def test_a_compiled_step_is_the_same(tmp_path: Path) -> None:
    plain = moved(tmp_path, {})
    with counted() as graphs:
        compiled = moved(tmp_path, {}, {"compile": True})
    assert graphs.runs["Block.forward"] == 2
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_as_the_recipe_says(tmp_path: Path) -> None:
    free = moved(tmp_path, {})
    norm = torch.cat([step.flatten() for step in free.values()]).norm()
    limit = 0.1 * norm.item()
    for name, step in moved(tmp_path, {}, clip=limit).items():
        torch.testing.assert_close(step, 0.1 * free[name], rtol=1e-4, atol=1e-6)
    for name, step in moved(tmp_path, {}, clip=limit, clip_by="tensor").items():
        torch.testing.assert_close(step, free[name] * min(1.0, limit / free[name].norm().item()), rtol=1e-4, atol=1e-6)
    for name, step in moved(tmp_path, {}, clip_value=limit / 10).items():
        torch.testing.assert_close(step, free[name].clamp(-limit / 10, limit / 10), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("optim", "rate"), [({"lr_rule": "linear"}, 8 / 256), ({"warmup_epochs": 2, "warmup_lr": 0.25}, 0.25)]
)
def test_the_first_step_is_as_long_as_batch_and_warm_up_say(tmp_path: Path, optim: dict[str, Any], rate: float) -> None:
    free = moved(tmp_path, {})
    for name, step in moved(tmp_path, {}, **optim).items():
        torch.testing.assert_close(step, rate * free[name], rtol=1e-3, atol=1e-6)


def test_micro_batches_make_the_same_step(tmp_path: Path) -> None:
    whole = moved(tmp_path, {})
    for name, step in moved(tmp_path, {}, {"accumulate": 4}).items():
        torch.testing.assert_close(step, whole[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", ["full", "gradual", "frozen"])
def test_what_is_frozen_does_not_move_and_what_is_averaged_does(tmp_path: Path, strategy: str) -> None:
    names = set(moved(tmp_path, {"strategy": {"name": strategy}, "ema": 0.5}))
    assert {"model.head.weight", "average.head.weight"} <= names
    assert any(name.startswith("model.blocks.") for name in names) == (strategy == "full")
    assert ("model.norm.weight" in names) == (strategy != "frozen")


@pytest.mark.parametrize("task", [{}, {"name": "sweep", "rates": [1, 2]}])
def test_what_is_watched_is_held_out(tmp_path: Path, task: dict[str, Any]) -> None:
    job = engine(tmp_path, task, {}, watch={"every": 2, "hold_out": 0.3}).job
    watched: Any = job.watch and job.watch.measure
    keys = [source.key(i) for source in (watched.source, job.dataset.source) for i in range(len(source))]
    assert len(watched.source) == 10 and len(set(keys)) == 40


def test_best_weights_that_are_lost_leave_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = engine(tmp_path, {}, {}, watch={"every": 1, "hold_out": 0.3})
    bias = made.method.get_parameter("model.head.bias")
    for made.step in (1, 2):
        bias.data.fill_(made.step)
        made.checkpoints.best = 1
        made.save()
    assert made.use_best() and bias.eq(1).all()
    bias.data.fill_(2)
    (made.checkpoints.path(1) / "model.safetensors").unlink()
    assert not made.use_best() and bias.eq(2).all() and made.checkpoints.best is None
    assert "the best weights, of step 1, are lost: those of the last step are used" in capsys.readouterr().err


def test_samples_come_as_the_task_balances_them(tmp_path: Path) -> None:
    made = engine(tmp_path, {"balance": "balanced", "long_tail": 2}, {})
    feed, order = made._feed(), made.job.dataset.order
    found = torch.cat([feed.next()[0][0].index for _ in range(made.steps_per_epoch)])
    feed.close()
    assert order is not None and found.tolist() == order.of(0, 0)[: len(found)].tolist()
    assert len(found.unique()) < len(found)


def test_samples_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    made = engine(tmp_path, {}, {}, data={**SHAPES, "order": {"name": "keyed"}})
    feed, dataset = made._feed(), made.job.dataset
    found = torch.cat([feed.next()[0][0].index for _ in range(made.steps_per_epoch)])
    feed.close()
    assert found.tolist() == keyed.Config().epoch(np.array([0, 40]), dataset.seed, 0)(np.arange(40)).tolist()
