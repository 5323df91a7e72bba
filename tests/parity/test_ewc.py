"""Elastic weight consolidation against numbers of official code (PyCIL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close, peek
from parity.incremental import NOTHING, TOLERANCE, Tiny, assert_grads, coming
from torch import Tensor

from unlabeled.incremental.fisher import chunk_importances, importances
from unlabeled.incremental.strategies.ewc import Config, anchor, importance, quadratic
from unlabeled.incremental.strategy import After, Kept

CASES = ("pycil_sample", "pycil_batch")


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, folder: Path) -> Golden:
    return Golden(folder / f"{request.param}.safetensors")


def importances_of(golden: Golden, network: Tiny, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Ours, where batches are of one image. Squares of larger batches' gradients, which ours are not, by hand."""
    size = golden.config["batch_size"]
    if size == 1:
        found = importances([chunk_importances(network, x, y)], len(x))
        return {name.removeprefix("weights.").replace("/", "."): f for name, f in found.items()}
    squares = list(squares_of_batches(network, x.split(size), y.split(size)))
    return {name: torch.stack([one[name] for one in squares]).mean(0) for name in network.named()}


def squares_of_batches(network: Tiny, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Iterator[dict[str, Tensor]]:
    for some, their in zip(x, y, strict=True):
        named = network.named()
        gradients = torch.autograd.grad(F.cross_entropy(network(some), their), list(named.values()))
        yield {name: g.square() for name, g in zip(named, gradients, strict=True)}


def learnt(golden: Golden, task: int, kept: Kept, old: int) -> tuple[Tiny, Kept]:
    """The network of a task's given weights, and what is kept at its end."""
    network = Tiny(golden.under(f"sd{task}"))
    x, y = golden[f"in/x{task}"], golden[f"in/y{task}"]
    found = importances_of(golden, network, x, y)
    rows = torch.arange(len(y))
    end = After(network.features(x), y, network(x), rows, network.named(), lambda: x, lambda: found)
    strategy = Config(weight=golden.config["lambda"], max_importance=golden.config["fishermax"])
    classes = golden.shape(f"sd{task}/fc.weight")[0]
    return network, Kept(strategy.learnt(end, coming(old, classes - old), kept), NOTHING.memory)


def test_importances_penalty_and_gradients(golden: Golden) -> None:
    first, kept = learnt(golden, 1, NOTHING, 0)
    for name in first.named():
        assert_close(kept.tensors[importance(name)], golden[f"out/fisher1/{name}"], TOLERANCE, f"first {name}")
        assert kept.tensors[anchor(name)].equal(golden[f"sd1/{name}"])
    old, strategy = len(golden["sd1/fc.weight"]), Config(weight=golden.config["lambda"])
    network, merged = learnt(golden, 2, kept, old)
    found = quadratic(network.named(), kept)
    found.backward()
    assert_close(found, golden["out/penalty"], TOLERANCE, "penalty")
    assert_grads(network.named(), golden)
    weighted = strategy.penalty(network.named(), coming(old, 1), kept)["penalty"]
    assert_close(weighted, strategy.weight * golden["out/penalty"], TOLERANCE, "weighted penalty")
    for name in network.named():
        assert_close(merged.tensors[importance(name)], golden[f"out/fisher2/{name}"], TOLERANCE, f"merged {name}")


def test_images_one_at_a_time_are_no_batches(request: pytest.FixtureRequest, folder: Path) -> None:
    """The larger batches of the set would not pass for single images."""
    batch = peek(request.config, "ewc", "pycil_batch.safetensors")
    assert batch is not None
    size, limit = batch.config["batch_size"], batch.config["fishermax"]
    network, (x, y) = Tiny(batch.under("sd1")), (batch["in/x1"], batch["in/y1"])
    ours = importances([chunk_importances(network, x, y)], len(x))["weights.fc/weight"].clamp(max=limit)
    assert size > 1 and not torch.allclose(ours, batch["out/fisher1/fc.weight"], rtol=0.1, atol=0)
