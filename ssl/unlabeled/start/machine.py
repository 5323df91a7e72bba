"""The machine: cores and memory that may be used, and its GPU."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch

from unlabeled.doctor.speed import memory_of
from unlabeled.launch.options import device_of
from unlabeled.processes import LIMITS, cores


class Machine(NamedTuple):
    """A machine.

    Attributes:
        device: cpu, cuda or mps.
        gpus: number of GPUs.
        name: of the GPU; '' without one.
        memory: of one GPU, or of the machine, GB.
        bf16: whether the GPU computes in bfloat16.
        cores: that may be used.
        here: whether the device is in this machine.
    """

    device: str
    gpus: int
    name: str
    memory: float
    bf16: bool
    cores: int
    here: bool = True


def machine(asked: str) -> Machine:
    """This machine. With `asked` cuda where there is none: one with a GPU of 16 GB, on which nothing can be measured.

    Raises UserError when another device is not there.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        return Machine("cuda", 1, "a GPU elsewhere", 16, True, cores(), here=False)
    device = device_of(asked)
    if device.type != "cuda":
        return Machine(device.type, 0, "", allowed_memory() / 1e9, False, cores())
    name, bf16 = torch.cuda.get_device_name(device), torch.cuda.is_bf16_supported()
    return Machine("cuda", torch.cuda.device_count(), name, memory_of(device) / 1e9, bf16, cores())


def allowed_memory() -> int:
    """Bytes of the machine, or as a container limits them."""
    limit = ""
    with suppress(OSError):
        limit = (LIMITS / "memory.max").read_text(encoding="utf-8").strip()
    return min(memory_of(torch.device("cpu")), int(limit)) if limit.isdigit() else memory_of(torch.device("cpu"))
