"""Runs made to collapse on purpose say so, once, with the field to turn; healthy ones say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import ROOT, UNSHOWN, launch, metrics

from unlabeled.backbone.encoder import Encoder
from unlabeled.data.view.views import View
from unlabeled.nn.heads import DistillHead
from unlabeled.pretrain.method import METHODS
from unlabeled.pretrain.methods import dino
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

# 60 steps, of which the last three readings may speak
SHORT = ["data.train_size=80", "data.val_size=20", "data.size=16", "train.batch_size=16", "train.epochs=12"]
LONG = "train.epochs=24"
SMALL = [f"method.encoder.{field}" for field in ("width=32", "depth=2", "heads=2")]
STEADY = ["optim.lr_rule=none", "optim.warmup_epochs=1", "evaluate=null"]
QUIET = [*UNSHOWN, "run.device=cpu", "run.workers=0", "run.log_every=5", "run.threads=1"]
PROTOTYPES = 64
# with few pictures and a sharp temperature, similarities at random cost more than ln N for longer than this
CALM = {"simclr": ["method.temperature=0.5"]}


def shrunk(name: str, *overrides: str) -> list[str]:
    """The demo recipe with half its pixels and a small network, as arguments of a command."""
    file = str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml")
    method = load(PretrainRecipe, file, []).method
    views = [f"method.{field}.size={value.shape[0] // 2}" for field, value in method if isinstance(value, View)]
    if "local" in type(method).model_fields:
        views.append("method.local.count=2")
    if "head" in type(method).model_fields:
        views += [f"method.head.{field}" for field in (f"prototypes={PROTOTYPES}", "hidden=64", "bottleneck=16")]
    return [file, *SHORT, *SMALL, *STEADY, *QUIET, *views, *overrides]


def too_fast(name: str) -> list[str]:
    """A hundred times the learning rate."""
    rate = load(PretrainRecipe, str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml"), []).optim.base_lr
    return [f"optim.base_lr={100 * rate}", "optim.clip=null", LONG]


def warnings(
    output: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hook: Callable[[], None] | None = None
) -> list[str]:
    """What a run warned of."""
    assert launch("pretrain", [*arguments, f"run.output={output}"], hook=hook) == [0]
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]


@pytest.mark.parametrize("name", METHODS.names())
def test_a_healthy_run_hears_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings(tmp_path, capsys, shrunk(name, *CALM.get(name, []))) == []
    last = metrics(tmp_path)[-1]
    assert last["effective_rank"] > 2 and last["feature_std"] > 0.15


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mae", "no better than the mean of the targets"),
        ("simmim", "no better than the mean of the targets"),
        ("simclr", "no better than chance"),
        ("mocov3", "no better than chance"),
        ("dino", "nearly the same features"),
        ("ibot", "nearly the same features"),
    ],
)
def test_a_learning_rate_a_hundred_times_too_high(
    name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [line for line in warnings(tmp_path, capsys, shrunk(name, *too_fast(name))) if sentence in line]
    assert len(said) == 1 and "optim.base_lr" in said[0]


def test_no_centring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharp = ["method.teacher_temperature=0.02", "method.teacher_temperature_start=0.02"]
    lines = warnings(tmp_path, capsys, shrunk("dino", "method.centre_momentum=0.99999", *sharp))
    said = [line for line in lines if "the same one or two prototypes" in line]
    assert len(said) == 1 and "Lower method.centre_momentum from 0.99999" in said[0]


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_a_teacher_temperature_too_high(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = ["method.teacher_temperature=1", "method.teacher_temperature_start=1"]
    said = [line for line in warnings(tmp_path, capsys, shrunk(name, *warm)) if f"ln {PROTOTYPES}" in line]
    assert len(said) == 1 and "Lower method.teacher_temperature from 1 to 0.04" in said[0]


def let_gradients_into_the_teacher() -> None:
    for part in (Encoder, DistillHead):
        part.forward = torch.enable_grad()(part.forward)  # type: ignore[method-assign]
    dino.sharpen = lambda logits, centre, temperature: ((logits - centre) / temperature).softmax(-1)  # type: ignore[attr-defined]
    dino.follow_ = lambda teacher, student: teacher.load_state_dict(student.state_dict())  # type: ignore[attr-defined]


def test_no_stop_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = warnings(tmp_path, capsys, shrunk("dino", LONG), let_gradients_into_the_teacher)
    assert len([line for line in lines if "nearly the same features" in line]) == 1
