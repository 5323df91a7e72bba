"""DER's heads and losses against numbers of official code (DER)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close, assert_gradient_at
from parity.incremental import NOTHING, TOLERANCE, coming
from torch import nn

from unlabeled.incremental.strategies.der import Config, alignment
from unlabeled.incremental.strategy import Coming, Seen


@pytest.fixture(params=("expand_fresh", "expand_reuse"))
def golden(request: pytest.FixtureRequest, folder: Path) -> Golden:
    return Golden(folder / f"{request.param}.safetensors")


def tasks_of(golden: Golden) -> list[Coming]:
    """The tasks of the set; from the second on old classes are remembered."""
    sizes = golden.config["tasks"]
    return [coming(sum(sizes[:t]), size, remembered=True, number=t) for t, size in enumerate(sizes)]


def strategy_of(golden: Golden) -> Config:
    return Config(reuse=golden.config["reuse_oldfc"])


def test_loss_and_gradients(golden: Golden) -> None:
    x, y, task, strategy = golden["in/x"], golden["in/y"], tasks_of(golden)[-1], strategy_of(golden)
    extractors = sorted(int(n) for n in golden.found(r"sd/convnets\.(\d+)\."))
    weights = {name: golden[f"sd/{name}"].requires_grad_() for name in golden.under("sd")}
    each = [F.linear(x, weights[f"convnets.{n}.l.weight"], weights[f"convnets.{n}.l.bias"]).tanh() for n in extractors]
    each = [*(old.detach() for old in each[:-1]), each[-1]]  # older ones are frozen
    features, width = torch.cat(each, dim=1), each[-1].shape[1]
    head, second = strategy.head(features.shape[1], task, None), strategy.auxiliary(width, task)
    assert isinstance(head, nn.Linear) and isinstance(second, nn.Linear) and head.bias is second.bias is None
    head.weight, second.weight = (nn.Parameter(golden[f"sd/{name}.weight"]) for name in NAMES)
    assert head.weight.shape == (task.classes, features.shape[1]) and second.weight.shape == (task.new + 1, width)
    now = Seen(features, head(features), auxiliary=second(each[-1]))
    terms = strategy.loss(now, None, y, task, NOTHING)
    torch.stack(list(terms.values())).sum().backward()
    assert now.auxiliary is not None
    assert_close(features, golden["out/features"], TOLERANCE, "features")
    assert_close(now.logits, golden["out/logits"], TOLERANCE, "logits")
    assert_close(now.auxiliary, golden["out/aux_logits"], TOLERANCE, "logits of the second head")
    assert_close(terms["classification"], golden["out/loss"], TOLERANCE, "cross-entropy")
    assert_close(terms["auxiliary"], golden["out/aux"], TOLERANCE, "cross-entropy of the second head")
    for name, layer in zip(NAMES, (head, second), strict=True):
        assert_gradient_at(layer.weight.grad, golden, f"grad/{name}.weight", TOLERANCE)
    for name, weight in weights.items():
        if name.startswith("convnets.") and f"grad/{name}" in golden:
            assert_gradient_at(weight.grad, golden, f"grad/{name}", TOLERANCE)
        elif name.startswith("convnets."):
            assert weight.grad is None or name.startswith(f"convnets.{extractors[-1]}.")


NAMES = ("classifier", "aux_classifier")


def test_heads_keep_their_old_block_where_they_are_reused(golden: Golden) -> None:
    width, strategy, before = 5, strategy_of(golden), None
    for number, task in enumerate(tasks_of(golden)):
        head = strategy.head((number + 1) * width, task, before)
        assert isinstance(head, nn.Linear)
        if number:
            assert isinstance(before, nn.Linear)
            block = head.weight[: task.old, : number * width]
            key = f"t{number}/old_block_kept"
            official = key in golden and bool(golden[key])
            assert block.equal(before.weight) == official
            assert int(golden[f"t{number}/copy_of_last"]) == 1 and strategy.extends and strategy.extend == "copy"
        before = head


def test_alignment(folder: Path) -> None:
    golden = Golden(folder / "weight_align.safetensors")
    weight, new = golden["in/weight"], golden.config["new"]
    old = len(weight) - new
    assert_close(alignment(weight, old), golden["out/gamma"], TOLERANCE, "factor")
    head, task = nn.Linear(weight.shape[1], len(weight), bias=False), coming(old, new)
    head.weight = nn.Parameter(weight.clone())
    Config(align=True).ended(head, task)
    assert head.weight[:old].equal(weight[:old])
    assert_close(head.weight[old:], weight[old:] * golden["out/gamma"], TOLERANCE, "new rows")
