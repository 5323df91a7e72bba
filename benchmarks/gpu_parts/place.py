"""What the parts share: the device, times on it, and engines with images in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UP, REPEATS = 3, 10


class Place(NamedTuple):
    """Where and how much is measured.

    Attributes:
        device: the GPU, or the CPU in a dry run.
        dry: sizes are small, since figures mean nothing.
        folder: for files, removed in the end.
    """

    device: torch.device
    dry: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def size(self, full: int, small: int) -> int:
        """A size on a GPU, or the one of a dry run."""
        return small if self.dry else full

    def wait(self) -> None:
        """Wait until the device has done what it was asked."""
        if self.cuda:
            torch.cuda.synchronize()

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal values; never zeros, which a GPU multiplies faster."""
        return torch.randn(shape, device=self.device).to(dtype)

    def once(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call until the device is done."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return 1e3 * (time.perf_counter() - started)

    def milliseconds(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Median milliseconds of a call after a warm-up, by events of the device where it has them."""
        for _ in range(WARM_UP):
            work()
        if not self.cuda:
            return median(self.once(work) for _ in range(2))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        self.wait()
        return median(before.elapsed_time(after) for before, after in pairwise(events))

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """bf16 autocast, as the engine runs under `train.precision: bf16`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


Figures = Iterator[tuple[str, Any]]


class Part(NamedTuple):
    """A part: yields (name, figure), and is stopped after so many seconds."""

    seconds: float
    measure: Callable[[Place], Figures]
