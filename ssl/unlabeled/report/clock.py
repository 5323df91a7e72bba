"""What something costs: seconds by the clock and of the CPU."""

from __future__ import annotations

import multiprocessing
import os
import time


class Clock:
    """Counts from when it was made."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), _cpu_seconds()

    @property
    def seconds(self) -> float:
        """By the clock."""
        return time.perf_counter() - self._began

    @property
    def cpu_seconds(self) -> float:
        """Of all threads of this process, and of its loader workers that have ended."""
        return _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    multiprocessing.active_children()  # so that workers that have ended are counted
    return sum(os.times()[:4])
