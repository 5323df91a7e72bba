"""SwAV against numbers of the official code (facebookresearch/swav): one iteration of its training."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import Golden, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD
from torch.nn import functional as F

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.swav import Config, SwAV
from unlabeled.train.optim import param_groups
from unlabeled.train.optimizers import sgd

BEGUN = Progress(50, 100, 50.0, 100.0)  # prototypes learn, queues are used
RENAMES = {"projection_head.": "projector.", "trunk.": "encoder.vit."}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per iteration of whatever set is given, as its names tell."""
    if "case" in metafunc.fixturenames:
        golden = peek(metafunc.config, "swav", "model.safetensors")
        metafunc.parametrize("case", (golden and golden.found(r"out_(\w+)/loss$")) or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


def ours(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in RENAMES.items() if name.startswith(old)), name)


def batch_of(golden: Golden) -> Batch:
    """Views of one size each, two or more, the large ones first."""
    pictures = [golden[f"in/view{i}"] for i in sorted(map(int, golden.found(r"in/view(\d+)$")))]
    views = [ViewBatch(torch.stack(list(group)), None) for _, group in groupby(pictures, lambda one: one.shape)]
    return Batch(views, torch.zeros(0), torch.zeros(0))


def config_of(golden: Golden, case: str) -> Config:
    c, (count, dim) = golden.config, golden.shape("sd/prototypes.weight")
    large, *small = (View(size=view.pixels.shape[-2:], count=len(view.pixels)) for view in batch_of(golden).views)
    width, channels, *_ = golden.shape("sd/trunk.conv.weight")
    narrow = {"width": width, "channels": channels}
    return Config(
        view=large,
        local=small[0] if small else None,
        encoder=EncoderConfig(model="parity.swav:narrow", arguments=narrow, channels=channels, output="map"),
        hidden=golden.shape("sd/projection_head.0.weight")[0],
        dim=dim,
        prototypes=count,
        temperature=c.get("T", 0.1),
        epsilon=c.get("eps", 0.05),
        iterations=c.get("it", 3),
        queue=golden.shape("in/queue")[1] if "queue" in case else 0,
        queue_epoch=0.0,
        frozen_epochs=100.0 if "frozen" in case else 0.0,
    )


def model_of(golden: Golden, case: str) -> SwAV:
    """The model as an iteration begins, once prototypes are normalised."""
    model: Any = config_of(golden, case).build()
    queues = {f"queues.{i}.rows": rows for i, rows in enumerate(golden["in/queue"])} if "queue" in case else {}
    model.load_state_dict({ours(name): tensor for name, tensor in golden.under("sd").items()} | queues)
    model._normalise_()
    return model.train()


def test_one_iteration(golden: Golden, case: str) -> None:
    model = model_of(golden, case)
    optimizer = sgd.Config(momentum=0.0).build(param_groups(model, 0.0))
    for group in optimizer.param_groups:
        group["lr"] = golden.config["lr"]
    loss = model(batch_of(golden), BEGUN).loss
    loss.backward()
    assert_close(loss, golden[f"out_{case}/loss"], FORWARD, "loss")
    for parameter in model.frozen(BEGUN):
        parameter.grad = None
    mine = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert (mine["prototypes.weight"] is None) == ("frozen" in case)
    for name in golden.some(f"grad_{case}"):
        if name == "projection_head.0.bias":  # in front of batch normalisation: noise
            assert golden[f"grad_{case}/{name}"].abs().max() < 1e-5 and mine[ours(name)].abs().max() < 1e-5
        else:
            assert_gradient_at(mine[ours(name)], golden, f"grad_{case}/{name}", BACKWARD)

    optimizer.step()
    after = golden.some(f"after_{case}")
    state = model.state_dict()
    for name in after:
        if name != "queue":
            assert_close(state[ours(name)], after[name], FORWARD, name)
    model.after_step(BEGUN)
    if "prototypes.weight" in after:
        torch.testing.assert_close(model.prototypes.weight, F.normalize(after["prototypes.weight"], dim=1))
    if "queue" in after:
        for i, rows in enumerate(after["queue"]):
            assert_close(model.state_dict()[f"queues.{i}.rows"], rows, FORWARD, f"queue {i}")


def test_assignments(golden: Golden) -> None:
    c = golden.config
    found = sinkhorn(golden["in/scores"], c.get("eps", 0.05), c.get("it", 3))
    assert_close(found, golden["out/sinkhorn"], FORWARD, "assignments")
