"""Barlow Twins, VICReg, BYOL and SimSiam: losses against plain loops, and what each says of rates and of its batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import ROOT
from torch import Tensor

from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import barlowtwins, byol, simsiam, vicreg
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.optim import param_groups, set_rates

Rows = list[list[float]]
SIZES = [(2, 2), (3, 7), (9, 5), (16, 33)]


def views(rows: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * width)
    first = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return first, first + torch.randn(rows, width, generator=generator, dtype=torch.float64)


def cosine(a: list[float], b: list[float], least: float) -> float:
    lengths = [max(math.sqrt(sum(x * x for x in vector)), least) for vector in (a, b)]
    return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def decorrelation(a: Rows, b: Rows, redundancy: float) -> float:
    loss = 0.0
    for i in range(len(a[0])):
        for j in range(len(a[0])):
            c = sum(x[i] * y[j] for x, y in zip(a, b, strict=True)) / len(a)
            loss += (c - 1) ** 2 if i == j else redundancy * c**2
    return loss


def spread(z: Rows) -> tuple[float, float]:
    """(variance, covariance)"""
    rows, width = len(z), len(z[0])
    means = [sum(row[i] for row in z) / rows for i in range(width)]
    short, others = 0.0, 0.0
    for i in range(width):
        for j in range(width):
            c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (rows - 1)
            if i != j:
                others += c**2
            else:
                short += max(0.0, 1 - math.sqrt(c + 1e-4))
    return short / width, others / width


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_losses_are_plain_loops(rows: int, width: int) -> None:
    a, b = views(rows, width)
    first, second, tight = a.tolist(), b.tolist(), {"rtol": 2e-6, "atol": 1e-6}
    cosines = [sum(cosine(x, y, least) for x, y in zip(first, second, strict=True)) / rows for least in (1e-8, 1e-6)]
    expected = torch.tensor([-cosines[0], 2 - 2 * cosines[1], decorrelation(first, second, 0.3), *spread(second)])
    loss, measures = barlowtwins.decorrelation(a, b, 0.3)
    found = [simsiam.unlikeness(a, b), byol.distance(a, b), loss, *vicreg.spread(b.float())]
    torch.testing.assert_close(torch.stack([one.float() for one in found]), expected.float(), **tight)
    diagonal = sum(x[i] * y[i] for x, y in zip(first, second, strict=True) for i in range(width)) / (rows * width)
    assert measures["on_diagonal"].item() == pytest.approx(diagonal, rel=1e-5, abs=1e-6)


def test_values_of_a_collapse_and_of_nothing_learnt() -> None:
    """24.75: what lacks to a deviation of 1 where there is none, officially; 4 and 0 of BYOL, 0 and -1 of SimSiam."""
    same = torch.ones(6, 5)
    variance, covariance = vicreg.spread(same)
    assert (25 * variance.item(), covariance.item()) == (pytest.approx(24.75), 0)
    across = torch.eye(2)
    assert [2 * byol.distance(across, x).item() for x in (across.flip(0), across)] == pytest.approx([4, 0], abs=1e-6)
    assert [simsiam.unlikeness(across, x).item() for x in (across.flip(0), across)] == pytest.approx([0, -1])


@pytest.mark.parametrize("name", ["barlowtwins", "vicreg", "byol", "simsiam"])
def test_rates_and_decay_of_the_papers(name: str) -> None:
    """At the start of the last of a hundred epochs, of parameters by name, as the official scripts compute them."""
    recipe: Any = load(PretrainRecipe, str(ROOT / "recipes" / "pretrain" / f"{name}_resnet50_in1k.yaml"), [])
    with torch.device("meta"):
        method = recipe.method.build()
    optim, epochs = recipe.optim, recipe.train.epochs
    optimizer = optim.build(param_groups(method, optim.weight_decay))
    set_rates(optimizer, optim, optim.peak(recipe.train.batch_size), Progress(0, 1, epochs - 1, epochs))
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    found = {key: groups[id(p)] for key, p in method.named_parameters() if p.requires_grad}

    batch, warm = recipe.train.batch_size, optim.warmup_epochs
    q = (1 + math.cos(math.pi * (epochs - 1 - warm) / (epochs - warm))) / 2
    scale = batch / 256
    falling = {"byol": 0.2 * q, "simsiam": 0.05 * q}.get(name, 0.2 * (q + 0.001 * (1 - q))) * scale
    vectors = falling * (0.0048 / 0.2 if name == "barlowtwins" else 1)
    decay = {"byol": 1.5e-6, "simsiam": 1e-4}.get(name, 1e-6)
    everything = name == "simsiam"
    expected = {
        "encoder.vit.conv1.weight": (falling, decay),
        "encoder.vit.bn1.weight": (vectors, decay if everything else 0),
        "projector.0.weight": (falling, decay),
        "projector.1.bias": (vectors, decay if everything else 0),
    }
    if name in ("byol", "simsiam"):
        rate = 0.05 * scale if everything else falling
        expected |= {"predictor.0.weight": (rate, decay), "predictor.1.bias": (rate, decay if everything else 0)}
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-9), key


def test_a_predictor_may_follow_the_schedule() -> None:
    with torch.device("meta"):
        kept, falls = (simsiam.Config(keep_predictor_rate=keep).build() for keep in (True, False))
    assert [model.keeps_rate("predictor.0.weight") for model in (kept, falls)] == [True, False]
    assert not kept.keeps_rate("projector.0.weight")


def test_the_target_of_byol_begins_elsewhere_and_follows_with_the_momentum_of_the_step() -> None:
    torch.manual_seed(0)
    config = byol.Config(encoder={"model": "test_resnet"}, hidden=8, dim=4, momentum=0.9)
    model = config.build()
    own, followed = model.teacher.projector[0].weight, model.projector[0].weight
    assert (own != followed).any() and not any(p.requires_grad for p in model.teacher.parameters())
    before, tau = own.clone(), 1 - 0.1 * (1 + math.cos(math.pi * 3 / 10)) / 2
    model.after_step(Progress(3, 10, 0.3, 1.0))
    torch.testing.assert_close(own, tau * before + (1 - tau) * followed.detach())


def test_the_last_bias_of_simsiams_projector_never_learns() -> None:
    model = simsiam.Config(encoder={"model": "test_resnet"}, dim=6, projector_layers=2, predictor_hidden=3).build()
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == ["projector.3.bias"]
