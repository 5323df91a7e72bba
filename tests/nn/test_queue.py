"""The queue against a plain list of rows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import on_processes
from torch import Tensor

from unlabeled.nn.collectives import world
from unlabeled.nn.queue import Queue

WIDTH, STEPS = 3, 4


def batch(step: int, rows: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize(("length", "rows"), [(7, 2), (8, 4), (5, 8), (1, 1)])
def test_the_newest_rows_come_first_and_zeros_last(length: int, rows: int) -> None:
    queue, plain = Queue(length, WIDTH), [torch.zeros(WIDTH)] * length
    for step in range(STEPS):
        plain = [*batch(step, rows), *plain][:length]
        ahead = queue.after(batch(step, rows))
        queue.note(batch(step, rows).requires_grad_(), step)
        assert not torch.equal(queue.rows, ahead), "rows enter after the step"
        queue.push_()
        assert torch.equal(queue.rows, torch.stack(plain))
        assert torch.equal(queue.rows, ahead)


def test_a_skipped_step_is_forgotten() -> None:
    queue = Queue(4, WIDTH)
    queue.note(torch.full((2, WIDTH), torch.nan), step=7)
    queue.note(batch(8, 2), step=8)
    queue.push_()
    assert torch.equal(queue.rows, torch.cat([batch(8, 2), torch.zeros(2, WIDTH)]))


def test_micro_batches_enter_together() -> None:
    whole, parts = Queue(5, WIDTH), Queue(5, WIDTH)
    whole.note(batch(0, 6), step=0)
    for part in batch(0, 6).chunk(3):
        parts.note(part, step=0)
    for queue in (whole, parts):
        queue.push_()
        assert torch.equal(queue.rows, batch(0, 6)[:5])


def pushed(length: int, rank: int) -> Tensor:
    queue = Queue(length, WIDTH)
    for step in range(STEPS):
        mine = batch(step, 4).bfloat16().chunk(world())[rank]
        queue.note(mine, step)
        assert torch.equal(queue.after(mine)[: min(4, length)], batch(step, 4).bfloat16().float()[:length])
        queue.push_()
    return queue.rows


@pytest.mark.parametrize("length", [3, 10])
def test_two_processes_have_the_queue_of_one(length: int) -> None:
    for rows in on_processes(partial(pushed, length)):
        assert torch.equal(rows, pushed(length, 0))
