"""Collective operations on tensors. With one process all of them are identities.

The loss of a process is the mean over its own rows, and DistributedDataParallel averages gradients over processes: one
process and many minimise the same loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Gather rows x [B, ...] of all processes in rank order: [world * B, ...], without gradient; B must be the same."""
    return _all_rows(x) if world() > 1 else x.detach()


def gather_with_gradient(x: Tensor) -> Tensor:
    """As `gather`, with gradient: the sum of the gradients that all processes have for a row."""
    return _Gather.apply(x) if world() > 1 else x


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of x [...] over processes, without gradient."""
    return sum_over_processes(x) / world()


def mean_with_gradient(x: Tensor) -> Tensor:
    """As `mean_over_processes`, with gradient, for a loss that is the same function of the mean on every process.

    The gradient is handed on as it is: DistributedDataParallel takes the mean over processes.
    """
    return x + (mean_over_processes(x) - x.detach()) if world() > 1 else x


@torch.no_grad()
def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of x [...] over processes, without gradient."""
    return _reduced(x, dist.ReduceOp.SUM) if world() > 1 else x.detach()


@torch.no_grad()
def max_over_processes(x: Tensor) -> Tensor:
    """The largest x [...] over processes, elementwise, without gradient."""
    return _reduced(x, dist.ReduceOp.MAX) if world() > 1 else x.detach()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = _reduced(gradients[0], dist.ReduceOp.SUM)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def _all_rows(x: Tensor) -> Tensor:
    rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(rows, x.detach().contiguous())
    return torch.cat(rows)


def _reduced(x: Tensor, how: Any) -> Tensor:
    # a copy: a collective writes into its argument
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, how)
    return x
