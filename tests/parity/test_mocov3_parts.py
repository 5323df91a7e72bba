"""MoCo v3's loss and momentum against numbers of the official code (facebookresearch/moco-v3)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close, golden_folder

from unlabeled.nn.losses import info_nce
from unlabeled.nn.schedules import cosine

FORWARD, BACKWARD = 1e-5, 2e-5


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config, "mocov3")


def test_contrastive_loss(folder: Path) -> None:
    golden = Golden(folder / "contrastive.safetensors")
    for temperature in golden.config["T"]:
        queries = golden["in/q"].clone().requires_grad_()
        loss = info_nce(queries, golden["in/k"], 0, temperature)
        loss.backward()
        assert queries.grad is not None
        assert_close(loss, golden[f"out/loss_T{temperature}"], FORWARD, f"loss at {temperature}")
        assert_close(queries.grad, golden[f"out/dloss_dq_T{temperature}"], BACKWARD, f"gradient at {temperature}")


def test_momentum(folder: Path) -> None:
    golden = Golden(folder / "schedules.safetensors")
    done = [float(epoch) / golden.config["epochs"] for epoch in golden["in/epoch"]]
    momenta = [cosine(golden.config["moco_m"], 1.0, d) for d in done]
    assert_close(torch.tensor(momenta, dtype=torch.float64), golden["out/momentum"].double(), 1e-12, "momentum")
