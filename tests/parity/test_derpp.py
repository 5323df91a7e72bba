"""DER++ against numbers of official code (mammoth)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close
from parity.incremental import TOLERANCE, after, assert_grads, coming

from unlabeled.incremental.strategies.derpp import Config
from unlabeled.incremental.strategy import Kept


def test_loss_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "step.safetensors")
    weights = {name: golden[f"sd/{name}"].requires_grad_() for name in ("weight", "bias")}
    new, first, second = (
        F.linear(golden[f"in/{x}"], weights["weight"], weights["bias"]) for x in ("x", "mem1_x", "mem2_x")
    )
    stored = golden["in/mem1_logits"]
    known = torch.full((len(stored),), stored.shape[1])
    strategy = Config(alpha=golden.config["alpha"], beta=golden.config["beta"])
    terms = strategy.terms(new, golden["in/y"], first, stored, known, second, golden["in/mem2_y"])
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert_close(loss, golden["out/loss"], TOLERANCE, "loss")
    assert_grads(weights, golden)
    # what is put away are the logits as they are
    kept = Kept({}, torch.arange(len(new)))
    end = after(golden["in/x"], golden["in/y"], new.detach())
    found = strategy.learnt(end, coming(0, new.shape[1]), kept)
    assert found["numbers"].equal(kept.memory)
    assert_close(found["logits"], golden["out/stored_logits"], TOLERANCE, "stored logits")
