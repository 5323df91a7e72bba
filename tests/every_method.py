"""Every method as its demo recipe builds it, for tests that walk `methods/`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT

from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import Normalize, ViewDataset, collate, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.opened import Opened
from unlabeled.pretrain.method import METHODS, Method, Progress
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

every_method = pytest.mark.every_kind("method")

SMALL = ["data.train_size=42", "data.val_size=20", "train.batch_size=8", "train.epochs=2", "optim.warmup_epochs=0.5"]
QUIET = ["evaluate=null", "run.device=cpu", "run.workers=0", "run.log_every=1", "run.checkpoint_every=3"]
LAST = 10
START = Progress(0, LAST, 0.0, 2.0)


def recipe_file(name: str) -> Path:
    """The demo recipe of a method: that of `mypackage.mymethod` is `mymethod_shapes.yaml` beside its module."""
    folder = ROOT / "recipes" / "demo"
    if "." in name:
        folder = Path(inspect.getfile(METHODS.kind(name))).parent
    file = folder / f"{name.rpartition('.')[2]}_shapes.yaml"
    assert file.is_file(), f"the method {name} needs {file}, on shapes: minutes on a laptop, and what tests run"
    return file


def recipe_of(name: str) -> Any:
    return load(PretrainRecipe, str(recipe_file(name)), [*SMALL, *QUIET])


def build(name: str) -> Method:
    torch.manual_seed(0)
    return recipe_of(name).method.build()


def batch_of(name: str) -> Batch:
    """The first batch of eight samples, on the CPU."""
    recipe = recipe_of(name)
    dataset = ViewDataset(
        Opened(recipe.data).train, recipe.method.views, recipe.method.backbone.patch_size, recipe.seed
    )
    positions = next(iter(EpochSampler(42, 8, LAST, seed=recipe.seed)))
    cpu = torch.device("cpu")
    return to_device(collate([dataset[p] for p in positions]), cpu, Normalize(IMAGENET.mean, IMAGENET.std, cpu))
