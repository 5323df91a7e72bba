"""Barlow Twins against numbers of the official code (facebookresearch/barlowtwins)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from parity.given import Given, batch_of, given, mlp_widths
from parity.golden import Golden, assert_close, assert_gradient_at
from parity.vit import BACKWARD, FORWARD, START, assert_gradients
from torch import nn

from unlabeled.nn.heads import mlp
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.barlowtwins import BarlowTwins, Config
from unlabeled.train.optim import param_groups, set_rates
from unlabeled.train.optimizers.lars import Config as LARS
from unlabeled.train.schedules.constant import Config as Constant


def ours(name: str) -> str:
    return f"norm.{name.removeprefix('bn.')}" if name.startswith("bn.") else name


def build(golden: Golden) -> Any:
    widths = mlp_widths(golden, "sd/projector.")
    config = Config(
        hidden=widths[1],
        dim=widths[-1],
        projector_layers=len(widths) - 1,
        redundancy=golden.config.get("lambd", 0.0051),
    )
    nobody: Any = Given()
    model = BarlowTwins(nobody, widths[0], config)
    if len(set(widths[1:-1])) > 1:  # officially each layer has a width of its own
        model.projector = mlp(widths, last_norm=False)
    model.load_state_dict({ours(name): tensor for name, tensor in golden.under("sd").items()})
    return given(model)


def test_loss_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    model = build(golden)
    features = [golden[f"in/features{i}"].requires_grad_() for i in (1, 2)]
    for i in (int(number) for number in golden.found(r"out/z(\d)")):
        assert_close(build(golden).projector(features[i - 1]), golden[f"out/z{i}"], FORWARD, f"z{i}")
    loss = model(batch_of(*(x[None, ..., None, None] for x in features)), START).loss
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    loss.backward()
    for i, x in enumerate(features, 1):
        assert_gradient_at(x.grad, golden, f"grad/features{i}", BACKWARD)
    official = golden.some("grad")
    assert_gradients(model, {n: official[n] for n in official if not n.startswith("features")}, ours)


def test_lars(folder: Path) -> None:
    """Vectors at a rate of their own, without weight decay and trust ratio, by our param groups."""
    golden = Golden(folder / "lars.safetensors")
    c, nobody = golden.config, Given()
    rate = c.get("lr_weights", 0.2)
    model: Any = BarlowTwins(nobody, 2, Config(hidden=2, dim=2, vector_rate=c.get("lr_biases", 0.0048) / rate))  # type: ignore[arg-type]
    model.projector = nn.ParameterDict(dict(golden.under("in/p", end="")))
    config = LARS(
        base_lr=rate,
        lr_rule="none",
        schedule=Constant(),
        momentum=c.get("momentum", 0.9),
        trust=c.get("trust_coefficient", 0.001),
        weight_decay=c.get("weight_decay", 1e-6),
    )
    optimizer = config.build(param_groups(model, config.weight_decay))
    set_rates(optimizer, config, rate, START)
    for step, number in enumerate(sorted(golden.found(r"in/g\w+_(\d+)$"), key=int), 1):
        for name, parameter in model.projector.items():
            parameter.grad = golden[f"in/g{name}_{number}"]
        optimizer.step()
        for name, parameter in model.projector.items():
            assert_close(parameter, golden[f"out/p{name}_after{step}"], FORWARD, f"p{name} after step {step}")


def test_schedules(folder: Path) -> None:
    """The rates of weights and of vectors, up to a thousandth of the peak, by our param groups."""
    golden = Golden(folder / "schedules.safetensors")
    c = golden.config
    weights, epochs, steps = c.get("lr_weights", 0.2), c["epochs"], c["niter_per_ep"]
    model: Any = BarlowTwins(Given(), 2, Config(hidden=2, dim=2, vector_rate=c.get("lr_biases", 0.0048) / weights))  # type: ignore[arg-type]
    config = LARS(base_lr=weights, min_lr=weights / 1000, scale_ends=True, warmup_epochs=c.get("warmup_epochs", 10))
    optimizer = config.build(param_groups(model, config.weight_decay))
    peak, rates = config.peak(c.get("batch", 2048)), []
    for step in range(len(golden["out/lr_weights_biases"])):
        set_rates(optimizer, config, peak, Progress(step, epochs * steps, step / steps, epochs))
        by_axes = {group["params"][0].ndim: group["lr"] for group in optimizer.param_groups}
        rates.append([by_axes[2], by_axes[1]])
    assert_close(torch.tensor(rates, dtype=torch.float64), golden["out/lr_weights_biases"], 1e-12, "rates")
