"""Parts that look across processes: two of them, each with half the rows, agree with one that has all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from support import on_processes
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from unlabeled.nn import batchnorm
from unlabeled.nn.batchnorm import BatchNorm, synchronise_
from unlabeled.nn.collectives import gather, gather_with_gradient, mean_over_processes, rank, world
from unlabeled.nn.loss.contrast import info_nce, nt_xent
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.loss.spread import coding_rate, koleo
from unlabeled.nn.teacher import Centre
from unlabeled.pretrain.methods.lejepa import SIGReg

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
    "sigreg": lambda x: (sigreg := SIGReg(5, 4, 3.0))(mine(x).unsqueeze(0), sigreg.directions(WIDTH, 0)).mean(),
    "coding_rate": lambda x: coding_rate(torch.stack([mine(x), mine(rows(1)) + mine(x).square()]), 0.05),
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


class Fused:
    """The functions that torch has on CUDA for its SyncBatchNorm, written down on a CPU; `calls` are those to them."""

    calls: ClassVar[list[str]] = []

    @staticmethod
    def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dim=(0, *range(2, x.ndim)), correction=0)
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def batch_norm_gather_stats(
        _x: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        all_rows, squares = count * len(mean), (inverse_std**-2 - eps + mean**2).mean(0)
        variance = squares - mean.mean(0) ** 2
        running_mean.mul_(1 - momentum).add_(momentum * mean.mean(0))
        running_var.mul_(1 - momentum).add_(momentum * variance * all_rows / (all_rows - 1))
        return mean.mean(0), (variance + eps) ** -0.5

    @staticmethod
    def batch_norm_elemt(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_std: Tensor, _eps: float
    ) -> Tensor:
        normal = (x.movedim(1, -1) - mean) * inverse_std
        return (normal if weight is None else normal * weight + bias).movedim(-1, 1).clone()

    @staticmethod
    def batch_norm_backward_reduce(
        gradient: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, _weight: Tensor | None, *_needed: bool
    ) -> tuple[Tensor, ...]:
        flat, centred = (part.movedim(1, -1).flatten(0, -2) for part in (gradient, x))
        by_x = (flat * (centred - mean)).sum(0)
        return flat.sum(0), by_x, by_x * inverse_std, flat.sum(0)

    @staticmethod
    def batch_norm_backward_elemt(
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        weight: Tensor | None,
        by_bias: Tensor,
        by_x: Tensor,
        count: Tensor,
    ) -> Tensor:
        assert count.dtype == torch.int32
        flat, centred = gradient.movedim(1, -1), x.movedim(1, -1) - mean
        rest = flat - by_bias / count.sum() - centred * inverse_std**2 * by_x / count.sum()
        return (rest * inverse_std * (1 if weight is None else weight)).movedim(-1, 1)


def normalised_in_double(fused: bool) -> dict[str, Tensor]:
    """Losses and gradients through batch normalisation, and its running statistics."""
    torch.set_default_dtype(torch.float64)
    try:
        if fused:
            batchnorm.is_fused = lambda _: True
            for name in [name for name in vars(Fused) if name.startswith("batch_norm")]:
                setattr(torch, name, partial(_noted, name))
        found = {}
        plain = BatchNorm(WIDTH, affine=False)
        losses = {"affine": normalised, "cnn": convolved, "plain": lambda x: (plain(mine(x)) * mine(rows(3))).mean()}
        for name, loss_of in losses.items():
            x = rows(0).requires_grad_()
            loss = loss_of(x)
            loss.backward()
            assert x.grad is not None and plain.num_batches_tracked is not None
            found[name], found[f"{name}/gradient"] = mean_over_processes(loss), mean_over_processes(x.grad)
        running = {"mean": plain.running_mean, "variance": plain.running_var, "steps": plain.num_batches_tracked}
        return found | running  # type: ignore[return-value, operator]
    finally:
        torch.set_default_dtype(torch.float32)


def _noted(name: str, *arguments: Any) -> Any:
    Fused.calls.append(name)
    return getattr(Fused, name)(*arguments)


def as_on_cuda(_rank: int) -> dict[str, Tensor]:
    found = normalised_in_double(fused=True)
    passes = {name: torch.tensor(Fused.calls.count(name)) for name in Fused.calls}
    return found | passes


def test_fused_batch_normalisation_is_native_batch_normalisation_of_all_rows_in_two_passes_each_way() -> None:
    expected = normalised_in_double(fused=False)
    for found in on_processes(as_on_cuda):
        passes = {name: found.pop(name).item() for name in list(found) if name.startswith("batch_norm")}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=lambda t, k=key: f"{k}: {t}")
        # four layers, forward and backward
        assert passes == dict.fromkeys([name for name in vars(Fused) if name.startswith("batch_norm")], 4)


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
