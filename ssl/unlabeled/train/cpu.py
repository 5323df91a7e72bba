"""Settings for training on a CPU: threads, and memory that the C library keeps."""

from __future__ import annotations

import ctypes
import sys

import torch

# the numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the kernel; returns whether the C library can.

    On a CPU every training step frees and allocates all activations. glibc returns large buffers to the kernel, which
    clears each page before its next use: 3 to 6 % of a step. The process keeps its peak memory until it ends. Does
    nothing without glibc (macOS, Windows, musl).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # no buffer outside the heap, and a heap that never shrinks
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def settle(threads: int | None) -> None:
    """Keep freed memory and set the number of threads.

    Args:
        threads: of torch; None = torch's own choice.
    """
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
