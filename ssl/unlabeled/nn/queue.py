"""A queue of the newest rows of all processes: keys of earlier batches, for losses that compare with many."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlabeled.nn.collectives import gather


class Queue(nn.Module):
    """The last rows [Q, D] of all processes, the newest batch first; zeros until it is full.

    Rows are noted in the forward pass and enter the queue after their step: all micro-batches of a step see the same
    queue, and a skipped step leaves it as it was. The queue is saved with the model, and is equal on all processes.
    """

    rows: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, width))
        self._step = -1
        self._noted: list[Tensor] = []

    @torch.no_grad()
    def after(self, rows: Tensor) -> Tensor:
        """The queue as it will be when rows [B, D] of each process have entered, without gradient: [Q, D] float32."""
        return torch.cat([gather(rows).float(), self.rows])[: len(self.rows)]

    @torch.no_grad()
    def note(self, rows: Tensor, step: int) -> None:
        """Keep rows [B, D] of a micro-batch of optimizer step `step`."""
        if step != self._step:  # forgets the rows of a skipped step too
            self._step, self._noted = step, []
        self._noted.append(rows.detach())

    @torch.no_grad()
    def push_(self) -> None:
        """Let the noted rows enter, in the order of micro-batches, then of processes."""
        entered = torch.cat([*(gather(rows).float() for rows in self._noted), self.rows])
        self.rows.copy_(entered[: len(self.rows)])
        self._noted = []
