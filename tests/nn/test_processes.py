"""Parts that look across processes: two of them, each with half the rows, agree with one that has all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import on_processes
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from unlabeled.nn.batchnorm import BatchNorm, synchronise_
from unlabeled.nn.collectives import gather, gather_with_gradient, mean_over_processes, rank, world
from unlabeled.nn.losses import info_nce, koleo, nt_xent, sinkhorn
from unlabeled.nn.teacher import Centre

ROWS, WIDTH = 8, 6


def rows(stream: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(stream))


def mine(x: Tensor) -> Tensor:
    """This process' share of the global rows."""
    return x.chunk(world())[rank()]


def pairwise_energy(x: Tensor) -> Tensor:
    """Every row against all rows: the gradient of a row has a part from each process."""
    return (mine(x) @ gather_with_gradient(mine(x)).T).exp().mean()


def contrast(x: Tensor) -> Tensor:
    keys = gather(mine(rows(1)))
    return info_nce(mine(x), keys, rank() * len(mine(x)), 0.2)


def normalised(x: Tensor) -> Tensor:
    torch.manual_seed(2)
    norm = BatchNorm(WIDTH)
    torch.nn.init.normal_(norm.weight)
    return (norm(mine(x)) * mine(rows(3))).tanh().sum(1).mean()


def convolved(x: Tensor) -> Tensor:
    """Through a CNN with both of timm's batch normalisations, alone and with an activation."""
    torch.manual_seed(2)
    cnn = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), BatchNormAct2d(3))
    synchronise_(cnn)
    return cnn(mine(x).view(-1, 1, 2, 3)).square().flatten(1).sum(1).tanh().mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "gather": pairwise_energy,
    "info_nce": contrast,
    "nt_xent": lambda x: nt_xent(mine(x), mine(rows(1)) + mine(x).square(), 0.2),
    "koleo": lambda x: koleo(mine(x)),
    "batch_norm": normalised,
    "batch_norm_2d": convolved,
}


def losses_and_gradients() -> dict[str, Tensor]:
    """Each loss and its gradient at the global rows, averaged over processes as DistributedDataParallel does."""
    found = {}
    for name, loss_of in LOSSES.items():
        x = rows(0).requires_grad_()
        loss = loss_of(x)
        loss.backward()
        assert x.grad is not None
        found[f"{name}/loss"], found[f"{name}/gradient"] = mean_over_processes(loss), mean_over_processes(x.grad)
    return found


def states() -> dict[str, Tensor]:
    """What is computed without gradient, of the global batch."""
    valid = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    centre, weighted, norm = Centre(WIDTH), Centre(WIDTH), BatchNorm(WIDTH)
    centre.note(mine(rows(0)), step=0)
    centre.update_()
    weighted.note(mine(rows(0)), step=0, valid=mine(valid))
    weighted.update_()
    norm(mine(rows(0)))
    return {
        "centre": centre.value,
        "centre of valid rows": weighted.value,
        "sinkhorn": gather(sinkhorn(mine(rows(0)), 0.1)),
        "sinkhorn of valid rows": gather(sinkhorn(mine(rows(0)), 0.1, valid=mine(valid))),
        "running mean": norm.running_mean.clone(),  # type: ignore[union-attr]
        "running variance": norm.running_var.clone(),  # type: ignore[union-attr]
    }


def everything(_rank: int) -> dict[str, Tensor]:
    return losses_and_gradients() | states()


KEYS = [f"{name}/{what}" for name in LOSSES for what in ("loss", "gradient")] + list(states())


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return on_processes(everything)


@pytest.mark.parametrize("key", KEYS)
def test_two_processes_are_one(two: list[dict[str, Any]], key: str) -> None:
    one = everything(0)[key]
    assert one.abs().max() > 1e-3, "nothing to compare"
    for found in two:
        torch.testing.assert_close(found[key], one, rtol=1e-5, atol=1e-6)


def test_centre_of_valid_rows() -> None:
    expected = 0.1 * rows(0)[[0, 1, 2, 4]].mean(0)
    torch.testing.assert_close(states()["centre of valid rows"], expected)
