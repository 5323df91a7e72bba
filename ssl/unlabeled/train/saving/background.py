"""Checkpoints that are written while training goes on.

At a step the tensors are copied to host memory, to the same buffers each time. One thread then hashes, writes and
flushes them. The next save waits for the one before, and so does everything that reads checkpoints.

A model that is not sharded is written by the main process alone. Of a sharded one every process copies and writes its
own pieces, and their threads agree over a group of their own: no tensor is ever gathered.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unlabeled.manifest import Tensors
from unlabeled.processes import gather_objects, placed, raise_together
from unlabeled.signals import stop
from unlabeled.train.checkpoint import Checkpoints, Exchange, alone
from unlabeled.train.saving.stored import Place
from unlabeled.train.state import is_shard, share


class HostCopy:
    """A copy of tensors in host memory: page-locked where they come from a GPU, which then copies by itself."""

    def __init__(self) -> None:
        self._buffers = dict[tuple[str, str], Tensor]()
        self._queued: torch.cuda.Event | None = None

    def take(self, stem: str, name: str, tensor: Tensor) -> Tensor:
        """Copy a tensor to its buffer; a GPU does so in its turn, see `wait`."""
        buffer, queued = self._buffers.get((stem, name)), tensor.device.type == "cuda"
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=queued)
            self._buffers[stem, name] = buffer
        buffer.copy_(tensor, non_blocking=queued)
        if queued:
            self._queued = self._queued or torch.cuda.Event()
            self._queued.record()
        return buffer

    def wait(self) -> None:
        """Wait until the copies are there."""
        if self._queued is not None:
            self._queued.synchronize()


class Background:
    """Writes the checkpoints of a run, one at a time.

    Args:
        checkpoints: where to.
        sharded: whether the model is spread over the processes. Make it on all of them.
    """

    def __init__(self, checkpoints: Checkpoints, sharded: bool = False) -> None:
        self.checkpoints, self._host = checkpoints, HostCopy()
        self._exchange: Exchange = partial(gather_objects, group=dist.new_group(backend="gloo")) if sharded else alone
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._said: list[str] = []

    @property
    def failed(self) -> bool:
        """Whether this process could not write a checkpoint, and has told nobody yet: `wait` does."""
        return self._error is not None

    def begin(self, step: int, tensors: dict[str, Tensors], state: dict[str, Any]) -> None:
        """Copy a checkpoint, and begin to write it when the one before is complete. Call it on all processes.

        Args:
            step: of the checkpoint.
            tensors: by file stem; may be sharded, and change as soon as this returns.
            state: as JSON.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        (rank, world), files, places = placed(), dict[str, Tensors](), dict[str, dict[str, Place]]()
        for stem, part in tensors.items():
            own = f"{stem}-{rank}-of-{world}" if any(map(is_shard, part.values())) else stem
            shares = {name: found for name, tensor in part.items() if (found := share(tensor)) is not None}
            files[own] = {name: self._host.take(own, name, tensor) for name, (tensor, _) in shares.items()}
            places[own] = {name: place for name, (_, place) in shares.items() if place is not None}
        if rank > 0:
            files = {stem: part for stem, part in files.items() if part}
        if self.checkpoints.writes or self._exchange is not alone:
            # which one is the best is that of this step, and what is said is said by the main thread
            checkpoints = replace(self.checkpoints, say=self._said.append)
            save = partial(checkpoints.save, step, files, copy.deepcopy(state), places, self._exchange)
            self._thread = threading.Thread(target=self._write, args=[save], daemon=True)
            self._thread.start()

    def _write(self, save: Callable[[], Path]) -> None:
        try:
            self._host.wait()
            save()
        except BaseException as error:  # `wait` raises it
            self._error = error

    def wait(self) -> None:
        """Wait until the last checkpoint is complete. Call it on all processes.

        Raises:
            UserError: it could not be written; on all processes.
        """
        with stop.later():
            self.close()
            error, self._error = self._error, None
            raise_together(error)

    def close(self) -> None:
        """Wait until this process writes no more, whether that succeeds or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        while self._said:
            self.checkpoints.say(self._said.pop(0))
