"""What the host does not wait for: the flags of a step that is queued on the device, and the next batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.samples import RawBatch
from unlabeled.pretrain.method import Output
from unlabeled.processes import total


def at_hand(flag: Tensor) -> bool:
    """Whether the host can read a flag without waiting for a device: a step that is whole needs no guard then."""
    return flag.device.type == "cpu"


class Verdict(NamedTuple):
    """What all processes agreed on in a step."""

    broken: bool
    stop: bool
    bad: bool
    failed: bool
    loss: float


class Flags:
    """What each process found in a step, exchanged in one small sum on the device. Only `read` waits for it.

    Args:
        accelerator: of the run.
        loss, norm: of this process's gradients [], on the device.
        stop: whether a signal asks this process to end.
        bad: whether the batch that it fetched in this step had bad pictures.
        failed: whether it could fetch none.

    Attributes:
        broken: [] bool on the device: whether loss or gradients of any process are not finite.
    """

    def __init__(
        self, accelerator: Accelerator, loss: Tensor, norm: Tensor, *, stop: bool, bad: bool, failed: bool
    ) -> None:
        own, cuda = ~(torch.isfinite(loss) & torch.isfinite(norm)), loss.device.type == "cuda"
        said = torch.zeros(3, device=loss.device)
        for place, flag in enumerate((stop, bad, failed)):
            if flag:
                said[place].fill_(1)  # a copy from the host would wait for what is queued on a GPU
        seen = torch.cat([own.view(1), said, loss.view(1) / accelerator.num_processes]).float()
        seen = total(accelerator, seen)
        self.broken = seen[0] > 0
        self._seen = seen.to("cpu", non_blocking=True) if cuda else seen
        self._copied = torch.cuda.current_stream(loss.device).record_event() if cuda else None

    def read(self) -> Verdict:
        """The flags of all processes, when the device has come so far; the loss is their mean."""
        if self._copied is not None:
            self._copied.synchronize()
        *counts, loss = self._seen.tolist()
        broken, stop, bad, failed = (count > 0 for count in counts)
        return Verdict(broken, stop, bad, failed, loss)


@dataclass
class Queued:
    """A step that is queued on the device, until it is counted as taken or skipped."""

    flags: Flags
    step: int  # steps of the run, this one included
    outputs: list[Output]  # of its micro-batches
    fetched: list[RawBatch]  # in this step: the micro-batches of the step after the next one
    error: Exception | None  # that they could not be fetched
    counted: bool = False


class Ahead:
    """Moves the next micro-batch to the device while a step runs: on a GPU on a stream of its own.

    Args:
        device: of the run.
        move: makes a batch on the device, see `unlabeled.data.batch.loader.to_device`.
    """

    def __init__(self, device: torch.device, move: Callable[[RawBatch], Batch]) -> None:
        self._move, self._device = move, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._moved: tuple[RawBatch, Batch] | None = None

    def begin(self, raw: RawBatch) -> None:
        """Queue the copies and colours of a micro-batch."""
        with torch.cuda.stream(self._stream):  # None: the current one
            self._moved = raw, self._move(raw)

    def take(self, raw: RawBatch) -> Batch:
        """A micro-batch on the device, moved now where that has not begun."""
        if self._moved is None or self._moved[0] is not raw:
            return self._move(raw)
        (_, batch), self._moved = self._moved, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in _tensors(batch):
                tensor.record_stream(current)  # its memory is not given away before this step has read it
        return batch


def _tensors(part: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _tensors(inner)
