"""BYOL against numbers of the official code (google-deepmind/deepmind-research, byol)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from parity.given import Given, batch_of, given
from parity.golden import Golden, Part, assert_close
from parity.vit import BACKWARD, FORWARD, START, assert_gradients
from torch import Tensor

from unlabeled.nn.curves import cosine
from unlabeled.nn.teacher import ema_
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.byol import BYOL, Branch, Config
from unlabeled.train.optim import param_groups, set_rates
from unlabeled.train.optimizers.lars import Config as LARS
from unlabeled.train.schedule import Ramp
from unlabeled.train.schedules.constant import Config as Constant
from unlabeled.train.schedules.cosine import Config as Cosine

LAYERS = {".linear.w": ".0.weight", ".linear.b": ".0.bias", ".linear_1.w": ".3.weight"}
LAYERS |= {".batch_norm.scale": ".1.weight", ".batch_norm.offset": ".1.bias"}


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "heads.safetensors")


def ours(name: str) -> str:
    part = name.partition(".")[0]
    return part + LAYERS[name.removeprefix(part)]


def as_ours(name: str, tensor: Tensor) -> Tensor:
    """An official tensor in torch's layout: Haiku's weights are [in, out], its norms [1, D]."""
    return tensor.T if name.endswith(".w") else tensor.flatten()


def heads(part: Part) -> dict[str, Tensor]:
    return {ours(name): as_ours(name, tensor) for name, tensor in part.items()}


def build(golden: Golden) -> BYOL:
    shapes = {name.removeprefix("sd_online/"): golden.shape(name) for name in golden.names() if "sd_online/" in name}
    width, hidden = shapes["projector.linear.w"]
    config = Config(
        hidden=hidden,
        dim=shapes["projector.linear_1.w"][1],
        predictor_hidden=shapes["predictor.linear.w"][1],
        momentum=golden.config.get("base_ema", 0.996),
    )
    nobody: Any = Given()
    model = given(BYOL(Branch(nobody, width, config), Branch(nobody, width, config), config))
    online, target = heads(golden.under("sd_online")), heads(golden.under("sd_target"))
    target = {f"teacher.{name}": tensor for name, tensor in target.items() if name.startswith("projector.")}
    missing, unexpected = model.load_state_dict({**online, **target}, strict=False)
    assert not unexpected and all("running" in name or "tracked" in name for name in missing)
    return cast(BYOL, model)


def features(golden: Golden) -> tuple[Tensor, Tensor]:
    return golden["in/features1"].requires_grad_(), golden["in/features2"]


def test_predictions_and_targets(golden: Golden) -> None:
    model = build(golden)
    for i, x in enumerate(features(golden), 1):
        assert_close(model.predictor(model.projector(x)), golden[f"out/prediction{i}"], FORWARD, f"prediction {i}")
        assert_close(model.teacher.projector(x), golden[f"out/target{i}"], FORWARD, f"target {i}")


def test_loss_and_gradients(golden: Golden) -> None:
    model, (first, second) = build(golden), features(golden)
    loss = model(batch_of(*(x[None, ..., None, None] for x in (first, second))), START).loss
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    loss.backward()
    official = golden.some("grad")
    if "features1" in official:
        assert first.grad is not None
        assert_close(first.grad, official["features1"], BACKWARD, "gradient of features1")
    noise = golden.config.get("noise_only", ["grad/predictor.linear.b", "grad/projector.linear.b"])
    named = {name: official[name] for name in official if not name.startswith("features")}
    assert_gradients(model, named, ours, [name.removeprefix("grad/") for name in noise], as_ours)


def test_target_after_a_step(golden: Golden) -> None:
    """It follows the weights after the step; the official target has a predictor of its own, which nothing reads."""
    model, official, c = build(golden), heads(golden.under("after_ema")), golden.config
    model.load_state_dict(heads(golden.under("after_lars1")), strict=False)
    progress = Progress(c.get("ema_step", 0), c.get("max_steps", 1), 0.0, 1.0)
    predictor = build(golden).predictor
    weights = heads(golden.under("sd_target"))
    predictor.load_state_dict({n[10:]: t for n, t in weights.items() if n.startswith("predictor.")}, strict=False)
    model.after_step(progress)
    ema_(predictor, model.predictor, cosine(model.momentum, 1.0, progress.share))
    for name, tensor in official.items():
        part, _, rest = name.partition(".")
        mine = (predictor if part == "predictor" else model.teacher.projector).get_parameter(rest)
        assert_close(mine, tensor, FORWARD, name)


def test_lars(golden: Golden) -> None:
    """Steps with one gradient, by our param groups: biases and norms have neither weight decay nor a trust ratio."""
    model, c = build(golden), golden.config
    config = LARS(
        base_lr=c.get("lars_lr", 0.5), lr_rule="none", schedule=Constant(), weight_decay=c.get("weight_decay", 1.5e-6)
    )
    optimizer = config.build(param_groups(model, config.weight_decay))
    set_rates(optimizer, config, config.base_lr, START)
    x = features(golden)
    model(batch_of(*(one.detach()[None, ..., None, None] for one in x)), START).loss.backward()
    for name, tensor in golden.some("grad").items():
        if not name.startswith("features"):
            model.get_parameter(ours(name)).grad = as_ours(name, tensor).contiguous()
    for step in sorted(golden.found(r"after_lars(\d+)/"), key=int):
        optimizer.step()
        for name, tensor in heads(golden.under(f"after_lars{step}")).items():
            assert_close(model.get_parameter(name), tensor, FORWARD, f"{name} after step {step}")


def test_schedules(folder: Path) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c = golden.config
    total, warmup = c["max_steps"], c.get("warmup", 0)
    config = LARS(base_lr=c.get("lr", 0.2), warmup_epochs=warmup)
    ramp = Ramp(0.0, config.peak(c.get("batch", 256)), 0.0, warmup)
    steps = range(len(golden["out/lr"]))
    rates = [Cosine().at(Progress(step, total, step, total), ramp) for step in steps]
    assert_close(torch.tensor(rates, dtype=torch.float64), golden["out/lr"].double(), 1e-6, "lr")
    momenta = [cosine(c.get("base_ema", 0.996), 1.0, step / total) for step in range(len(golden["out/target_ema"]))]
    assert_close(torch.tensor(momenta, dtype=torch.float64), golden["out/target_ema"].double(), 1e-6, "momentum")
