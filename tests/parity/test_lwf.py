"""Learning without forgetting against numbers of official code (PyCIL, FACIL)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_close
from parity.incremental import NOTHING, TOLERANCE, Tiny, assert_grads, coming

from unlabeled.incremental.strategies.lwf import Config
from unlabeled.incremental.strategy import Seen

ROUNDED = 1e-4  # facil adds a small number to the new distribution


def test_loss_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "pycil.safetensors")
    c, x, y = golden.config, golden["in/x"], golden["in/y"]
    network, before = Tiny(golden.under("sd")), Tiny(golden.under("sd_old"))
    now, then = network.seen(x), before.seen(x)
    strategy = Config(weight=c.get("lambda", 3.0), temperature=c.get("T", 2.0))
    old = then.logits.shape[1]
    terms = strategy.loss(now, then, y, coming(old, now.logits.shape[1] - old), NOTHING)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert_close(now.logits, golden["out/logits"], TOLERANCE, "logits")
    assert_close(then.logits, golden["out/old_logits"], TOLERANCE, "old logits")
    assert_close(terms["classification"], golden["out/ce"], TOLERANCE, "cross-entropy")
    assert_close(terms["distillation"] / strategy.weight, golden["out/kd"], TOLERANCE, "distillation")
    assert_close(torch.stack(list(terms.values())).sum(), golden["out/loss"], TOLERANCE, "loss")
    assert_grads(network.named(), golden)
    assert all(parameter.grad is None for parameter in before.parameters())


def test_with_heads_of_each_task(folder: Path) -> None:
    """The other code's answers by head: those of all old heads count, the newest learns the labels."""
    golden = Golden(folder / "facil.safetensors")
    if "in/y" not in golden:
        pytest.fail("the set has no labels")
    heads = sorted(int(name) for name in golden.found(r"in/logits(\d+)"))
    logits = [golden[f"in/logits{task}"].requires_grad_() for task in heads]
    before = torch.cat([golden[f"in/old_logits{task}"] for task in heads[:-1]], dim=1)
    golden[f"in/old_logits{heads[-1]}"]  # of the head that comes, which the old network has not learnt
    strategy = Config(weight=golden.config.get("lambda", 1.0), temperature=golden.config.get("T", 2.0))
    now = torch.cat(logits, dim=1)
    task = coming(before.shape[1], logits[-1].shape[1])
    terms = strategy.loss(Seen(now, now), Seen(before, before), golden["in/y"], task, NOTHING)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert_close(terms["distillation"] / strategy.weight, golden["out/kd"], ROUNDED, "distillation")
    assert_close(loss, golden["out/loss"], ROUNDED, "loss")
    for task_number, head in zip(heads, logits, strict=True):
        assert head.grad is not None
        if f"grad/logits{task_number}" in golden:
            assert_close(head.grad, golden[f"grad/logits{task_number}"], ROUNDED, f"head {task_number}")
