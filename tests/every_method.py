"""Every method as its demo recipe builds it, for tests that walk `methods/`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.nn.collectives import rank, world
from unlabeled.nn.mixing import Mix
from unlabeled.pretrain.method import METHODS, Method, Output, Progress
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

every_method = pytest.mark.every_kind("method")

SMALL = ["data.train_size=42", "data.val_size=20", "train.batch_size=8", "train.epochs=2", "optim.warmup_epochs=0.5"]
QUIET = ["evaluate=null", "run.device=cpu", "run.workers=0", "run.log_every=1", "run.checkpoint_every=3"]
MOST = {"encoder.width": 32, "encoder.depth": 2, "encoder.heads": 2, "local.count": 2}
MOST |= {"head.prototypes": 64, "head.hidden": 32, "head.bottleneck": 16}
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


def recipe_of(name: str, *more: str) -> Any:
    return load(PretrainRecipe, str(recipe_file(name)), [*SMALL, *QUIET, *more])


def smaller(name: str) -> list[str]:
    """Overrides that make a demo recipe small where its sizes are fields: for whole runs."""
    method, found = recipe_of(name).method, list[str]()
    for field, most in MOST.items():
        value: Any = method
        for part in field.split("."):
            value = getattr(value, part, None)
        if isinstance(value, int) and value > most:
            found.append(f"method.{field}={most}")
    return found


def build(name: str, *more: str) -> Method:
    torch.manual_seed(0)
    return recipe_of(name, *more).method.build()


def batch_of(name: str, *more: str) -> Batch:
    """The first batch of eight samples, on the CPU."""
    recipe = recipe_of(name, *more)
    dataset = ViewDataset(
        Opened(recipe.data).train, recipe.method.views, recipe.method.mask_patch, recipe.seed, recipe.method.mixing
    )
    positions = next(iter(EpochSampler(42, 8, LAST, seed=recipe.seed)))
    cpu = torch.device("cpu")
    return to_device(collate([dataset[p] for p in positions]), cpu, Normalize(IMAGENET.mean, IMAGENET.std, cpu))


def on_a_gpu(method: Method, batch: Batch) -> Output:
    """A step with tensors that have a device but no values: reading one, or mixing devices, raises."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    was_enabled, was_dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with mode:
        _without_values(method)
        fake = tree_map(_fake_cuda, batch)
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            output = method(fake, START)
            method.after_step(START, torch.empty((), dtype=torch.bool, device="cuda"))
        finally:
            torch.set_autocast_enabled("cuda", was_enabled)
            torch.set_autocast_dtype("cuda", was_dtype)
    return output


def _fake_cuda(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="cuda") if isinstance(leaf, Tensor) else leaf


def _without_values(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_fake_cuda(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _fake_cuda(buffer)


def share_of(batch: Batch) -> Batch:
    """The rows of this process of a global batch, in double precision."""
    rows = len(batch.index)
    share = slice(rank() * rows // world(), (rank() + 1) * rows // world())
    views = []
    for view in batch.views:
        mask = None if view.mask is None else view.mask.map(lambda tensor: tensor[:, share])
        views.append(view._replace(pixels=view.pixels[:, share].double(), mask=mask))
    mix = None if batch.mix is None else Mix(*(tensor[share] for tensor in batch.mix))
    return batch._replace(views=views, labels=batch.labels[share], index=batch.index[share], mix=mix)
