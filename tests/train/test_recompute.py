"""`run.checkpoint_activations` in whole runs: a run ends with the same bits, and may go on with another value."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import TINY_FINETUNE, TINY_PRETRAIN, checkpoint_bytes, launch
from torch import nn

from unlabeled.errors import UserError
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.job import Job
from unlabeled.train.recipe import Run

LAST = 10
BOTH = ["train.precision=bf16", "run.accumulate=2", "train.epochs=2", "run.checkpoint_every=4"]
TINY_SIMCLR = """
name: tiny
data: {name: shapes, train_size: 16, val_size: 8, size: 16}
method: {name: simclr, view: {count: 2, size: 16}, encoder: {model: test_resnet, drop_path: 0.3}, hidden: 16, dim: 8}
optim: {name: adamw, base_lr: 0.03, warmup_epochs: 0}
train: {epochs: 1, batch_size: 8}
run: {device: cpu, workers: 0, page: false}
look: null
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and a run of each stage that keeps all activations."""
    home = tmp_path_factory.mktemp("recompute")
    (home / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    export = str(home / "pretrain" / "export")
    (home / "finetune.yaml").write_text(TINY_FINETUNE.replace("UNSET", export), encoding="utf-8")
    for stage in ("pretrain", "finetune"):
        assert launch(stage, arguments(home, stage, home / stage)) == [0]
    return home


def arguments(home: Path, stage: str, output: Path, *more: str) -> list[str]:
    ema = ["task.ema=0.5"] if stage == "finetune" else []
    return [str(home / f"{stage}.yaml"), f"run.output={output}", *BOTH, *ema, *more]


@pytest.mark.parametrize(("stage", "value"), [("pretrain", "blocks"), ("finetune", "2")])
def test_same_bits_and_another_value_halfway(home: Path, tmp_path: Path, stage: str, value: str) -> None:
    """Dropped paths, micro-batches, bfloat16, an average of weights; then a kill, and the rest as it is without."""
    twice = arguments(home, stage, tmp_path, f"run.checkpoint_activations={value}")
    assert launch(stage, twice, kill={"step": 6}) == [-9]
    assert checkpoint_bytes(tmp_path, 4) == checkpoint_bytes(home / stage, 4)
    assert launch(stage, arguments(home, stage, tmp_path)) == [0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(home / stage, LAST)


def test_two_processes_recompute_statistics_of_the_global_batch(tmp_path: Path) -> None:
    (tmp_path / "simclr.yaml").write_text(TINY_SIMCLR, encoding="utf-8")
    for name, more in (("plain", []), ("twice", ["run.checkpoint_activations=blocks"])):
        command = [str(tmp_path / "simclr.yaml"), f"run.output={tmp_path / name}", *more]
        assert launch("pretrain", command, world=2) == [0, 0]
    assert checkpoint_bytes(tmp_path / "plain", 2) == checkpoint_bytes(tmp_path / "twice", 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "of at least 1 or null, found 0"),
        ("block", "found 'block'. Did you mean 'blocks'?"),
        ("true", "found true"),
        ("1.5", "found 1.5"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, value: str, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    with pytest.raises(UserError, match=f"run.checkpoint_activations: expected .*{re.escape(text)}"):
        load(PretrainRecipe, tmp_path / "recipe.yaml", [f"run.checkpoint_activations={value}"])


def test_a_network_without_blocks_is_refused() -> None:
    job: Any = SimpleNamespace(recipe=SimpleNamespace(run=Run(checkpoint_activations="blocks")))
    with pytest.raises(UserError, match="no blocks that could be computed twice"):
        Job.twice(job, nn.Sequential(nn.Linear(2, 2)))  # type: ignore[arg-type]
