"""Training on a CPU: threads, and how the C library keeps memory that is freed."""

from __future__ import annotations

import ctypes
import sys

import torch

# the numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of handing it back to the kernel; whether the C library can.

    On a CPU every training step frees all its activations and asks for them again. glibc gives large buffers back to
    the kernel, which clears each page anew before its next use: 3 to 6 % of a step. What a process held at its peak it
    holds until it ends. Does nothing without glibc (macOS, Windows, musl).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # no buffer outside the heap, and a heap that never shrinks
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def settle(threads: int | None) -> None:
    """What pays on a CPU: freed memory stays, and small models run on few threads.

    Args:
        threads: for torch; None = as many as torch chose.
    """
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
