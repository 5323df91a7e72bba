"""Learning-rate, weight-decay and momentum schedules against numbers of the official DINO and MoCo v3 code."""

from __future__ import annotations

import pytest
import torch
from parity.conftest import Golden, assert_close, golden_folder

from unlabeled.method import Progress
from unlabeled.nn.schedules import cosine
from unlabeled.train.schedules import Cosine, Ramp, Table


@pytest.mark.parametrize("name", ["lr", "lr_start_nonzero"])
def test_dino_learning_rates(request: pytest.FixtureRequest, name: str) -> None:
    golden = Golden(golden_folder(request.config, "dino") / "schedules.safetensors")
    c = golden.config[name]
    ramp = Ramp(c.get("start_warmup_value", 0.0), c["base_value"], c["final_value"], c["warmup_epochs"])
    total = c["epochs"] * c["niter_per_ep"]
    mine = [Table().at(Progress(step, total, step / c["niter_per_ep"], c["epochs"]), ramp) for step in range(total)]
    official = golden[f"out/{name}"]
    assert_close(torch.tensor(mine, dtype=official.dtype), official, 1e-12, name)


@pytest.mark.parametrize("name", ["wd", "momentum"])
def test_dino_cosines(request: pytest.FixtureRequest, name: str) -> None:
    golden = Golden(golden_folder(request.config, "dino") / "schedules.safetensors")
    c = golden.config[name]
    total = c["epochs"] * c["niter_per_ep"]
    mine = [cosine(c["base_value"], c["final_value"], step / total) for step in range(total)]
    official = golden[f"out/{name}"]
    assert_close(torch.tensor(mine, dtype=official.dtype), official, 1e-12, name)


def test_mocov3(request: pytest.FixtureRequest) -> None:
    golden = Golden(golden_folder(request.config, "mocov3") / "schedules.safetensors")
    c, epochs = golden.config, golden["in/epoch"]
    ramp = Ramp(0.0, c["lr"], 0.0, c["warmup_epochs"])
    rates = [Cosine().at(Progress(0, 1, float(epoch), c["epochs"]), ramp) for epoch in epochs]
    assert_close(torch.tensor(rates, dtype=torch.float64), golden["out/lr"].double(), 1e-12, "lr")
    momenta = [cosine(c["moco_m"], 1.0, float(epoch) / c["epochs"]) for epoch in epochs]
    assert_close(torch.tensor(momenta, dtype=torch.float64), golden["out/momentum"].double(), 1e-12, "momentum")
