"""Small runs of the demo recipes that collapse on purpose, or do not, and what they warn of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from every_method import smaller
from support import ROOT, UNSHOWN, launch

from unlabeled.data.view.views import View
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

# 60 steps, of which the last three readings may speak
SHORT = ["data.train_size=80", "data.val_size=20", "data.size=16", "train.batch_size=16", "train.epochs=12"]
LONG = "train.epochs=24"
FEWER = ["data.train_size=40", "train.batch_size=8"]  # the same number of steps
STEADY = ["optim.lr_rule=none", "optim.warmup_epochs=1", "evaluate=null"]
QUIET = [*UNSHOWN, "run.device=cpu", "run.workers=0", "run.log_every=5", "run.threads=1"]
PROTOTYPES = 64


def shrunk(name: str, *overrides: str) -> list[str]:
    """The demo recipe with half its pixels and a small network, as arguments of a command."""
    file = str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml")
    method = load(PretrainRecipe, file, []).method
    views = [f"method.{field}.size={value.shape[0] // 2}" for field, value in method if isinstance(value, View)]
    if "local" in type(method).model_fields:
        views.append("method.local.count=2")
    if "head" in type(method).model_fields:
        views += [f"method.head.{field}" for field in (f"prototypes={PROTOTYPES}", "hidden=64", "bottleneck=16")]
    return [file, *SHORT, *smaller(name), *STEADY, *QUIET, *views, *overrides]


# of the demo recipe's learning rate, where it is not a hundred: then I-JEPA's teacher stands still at once, Barlow
# Twins jumps about without a collapse, and SimSiam learns in spite of it with some seeds
TIMES = {"ijepa": 10, "barlowtwins": 10, "simsiam": 300}


def too_fast(name: str) -> list[str]:
    """A hundred times the learning rate, or as many as are enough."""
    rate = load(PretrainRecipe, str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml"), []).optim.base_lr
    return [f"optim.base_lr={TIMES.get(name, 100) * rate}", "optim.clip=null", LONG]


def warnings(
    output: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hook: Callable[[], None] | None = None
) -> list[str]:
    """What a run warned of."""
    assert launch("pretrain", [*arguments, f"run.output={output}"], hook=hook) == [0]
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]


# what a method says at a hundred times its learning rate
TOO_FAST = {
    "mae": "no better than the mean of the targets",
    "simmim": "no better than the mean of the targets",
    "simclr": "no better than chance",
    "mocov3": "no better than chance",
    "barlowtwins": "nearly the same features",
    "vicreg": "nearly the same features",
    "byol": "predictions fit the other pictures",
    "simsiam": "predictions fit the other pictures",
    "dino": "nearly the same features",
    "ibot": "nearly the same features",
    "distill": "no better than if all pictures were alike",
    "ijepa": "no better than the mean of the targets",
    "swav": "assigned to all prototypes alike",
    "msn": "nearly the same features",
    "spark": "no better than the mean of the targets",
}
# at such a rate SIGReg brings the embeddings back, and they learn; tests/methods/test_lejepa.py has the collapse
RECOVERS = {"lejepa"}


def says_it_is_too_fast(name: str, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    """Assert that a run at such a rate says so, once, with the field to turn."""
    lines = warnings(output, capsys, shrunk(name, *too_fast(name), *more))
    said = [line for line in lines if TOO_FAST[name] in line]
    assert len(said) == 1 and "optim.base_lr" in said[0]
