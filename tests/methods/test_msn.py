"""MSN beyond the contract: its comparison by loops in double precision, and what follows the target network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.msn import MSN, Config
from unlabeled.pretrain.rescale import Setting, rescale
from unlabeled.train.optim import param_groups

ENCODER = EncoderConfig(
    model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2, positions="learned", interpolation="scale"
)
FIELDS: dict[str, Any] = {
    "target": View(size=16),
    "anchor": View(size=16, mask=RandomMask(ratio=0.15)),
    "focal": View(size=8, count=2),
    "encoder": ENCODER,
    "hidden": 12,
    "dim": 6,
    "prototypes": 5,
}


def built(**fields: object) -> MSN:
    torch.manual_seed(0)
    return Config.model_validate({**FIELDS, **fields}).build()


def shares(vector: list[float], prototypes: list[list[float]], temperature: float) -> list[float]:
    """The softmax of cosines over a temperature, number by number."""
    length = math.hypot(*vector)
    cosines = [sum(a * b for a, b in zip(vector, p, strict=True)) / length / math.hypot(*p) for p in prototypes]
    values = [math.exp(cosine / temperature) for cosine in cosines]
    return [value / sum(values) for value in values]


def balanced(plan: list[list[float]], iterations: int) -> list[list[float]]:
    for _ in range(iterations):
        totals = [sum(row[k] for row in plan) for k in range(len(plan[0]))]
        plan = [[value / total for value, total in zip(row, totals, strict=True)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


@pytest.mark.parametrize(
    ("views", "rows", "fields"),
    [(3, 4, {}), (1, 6, {"iterations": 0, "prototypes": 9}), (2, 3, {"temperature": 0.3, "sharpening": 0.5, "dim": 4})],
)
def test_the_comparison(views: int, rows: int, fields: dict[str, Any]) -> None:
    model, generator = built(**fields), torch.Generator().manual_seed(views)
    c, dim = model.config, model.prototypes.shape[1]
    anchors, vectors = torch.randn(views, rows, dim, generator=generator), torch.randn(rows, dim, generator=generator)
    prototypes = model.prototypes.tolist()
    sharp = [[p ** (1 / c.sharpening) for p in shares(row, prototypes, c.temperature)] for row in vectors.tolist()]
    targets = balanced([[p / sum(row) for p in row] for row in sharp], c.iterations)
    predictions = [[shares(row, prototypes, c.temperature) for row in view] for view in anchors.tolist()]
    loss, mean = 0.0, [0.0] * len(prototypes)
    for view in predictions:
        for target, row in zip(targets, view, strict=True):
            loss -= sum(t * math.log(p) for t, p in zip(target, row, strict=True)) / views / rows
            mean = [m + p / views / rows for m, p in zip(mean, row, strict=True)]
    found = model.compare(anchors, vectors)
    torch.testing.assert_close(found.targets, torch.tensor(targets), rtol=1e-5, atol=1e-7)
    assert found.cross_entropy.item() == pytest.approx(loss, rel=1e-5)
    assert found.memax.item() == pytest.approx(math.log(len(mean)) + sum(m * math.log(m) for m in mean), abs=1e-6)


def test_targets_have_no_gradient() -> None:
    model, vectors = built(), torch.ones(2, 6, requires_grad=True)
    model.compare(torch.randn(1, 2, 6), vectors).cross_entropy.backward()
    assert vectors.grad is None and model.prototypes.grad is not None


def test_prototypes_do_not_decay_and_are_not_clipped() -> None:
    model = built()
    decays = {id(p): group["decays"] for group in param_groups(model, 0.1) for p in group["params"]}
    assert not decays[id(model.prototypes)] and decays[id(model.encoder.vit.cls_token)]
    [clipped] = model.clip_groups()
    named = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert {named[id(p)] for p in clipped} == set(named.values()) - {"prototypes"}


def test_the_target_network_follows_along_a_line() -> None:
    model = built(momentum=0.5, momentum_end=0.9)

    def moved(step: int) -> Tensor:
        with torch.no_grad():
            model.encoder.vit.cls_token.fill_(1.0)
            model.teacher.vit.cls_token.fill_(0.0)
        model.after_step(Progress(step, 10, float(step), 10.0))
        return model.teacher.vit.cls_token.flatten()[0]

    assert [moved(step).item() for step in (0, 5, 10)] == pytest.approx([0.5, 0.3, 0.1])


def test_both_momenta_follow_the_batch() -> None:
    found = rescale(Config.model_validate(FIELDS), Setting(256, 100, 100_000))[0]
    assert (found.momentum, found.momentum_end) == pytest.approx((0.996**0.25, 0.9992**0.25))
