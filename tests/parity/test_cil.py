"""The protocol and the measures of class-incremental learning against numbers of official code (PyCIL, mammoth)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_close, peek
from parity.incremental import TOLERANCE

from unlabeled.incremental.measures import backward_transfer, forgetting, forward_transfer, measures
from unlabeled.incremental.protocol import class_order, increments


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per protocol of whatever set is given, as its names tell."""
    if "protocol" in metafunc.fixturenames:
        golden = peek(metafunc.config, "cil", "order.safetensors")
        metafunc.parametrize("protocol", (golden and golden.found(r"out/order_(\w+)")) or ["absent"])


def test_order_and_increments(folder: Path, protocol: str) -> None:
    golden = Golden(folder / "order.safetensors")
    said = re.fullmatch(r"(\d+)_seed(\d+)_B(\d+)_inc(\d+)", protocol)
    assert said, f"{protocol} does not say classes, seed, first task and step"
    classes, seed, init, step = map(int, said.groups())
    order, sizes = class_order(classes, seed), increments(classes, init, step)
    assert_close(torch.tensor(order), golden[f"out/order_{protocol}"], 0, "order")
    assert_close(torch.tensor(sizes), golden[f"out/increments_{protocol}"], 0, "increments")


def test_measures(folder: Path) -> None:
    golden = Golden(folder / "metrics.safetensors")
    accuracy, full = golden["in/accuracy"].numpy(), golden["in/accuracy_full"].numpy()
    found = {
        "forgetting": forgetting(accuracy),
        "backward_transfer": backward_transfer(accuracy),
        "forward_transfer": forward_transfer(full, golden["in/random"].numpy()),
    }
    for name, value in found.items():
        assert_close(torch.tensor(value, dtype=torch.float64), golden[f"out/{name}"], TOLERANCE, name)
    all_of_them = measures(accuracy, [1] * len(accuracy))
    assert (all_of_them.forgetting, all_of_them.backward_transfer) == (
        found["forgetting"],
        found["backward_transfer"],
    )
