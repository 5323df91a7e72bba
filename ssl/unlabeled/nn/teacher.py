"""The teacher: a moving average of the student, and the running centre of its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from unlabeled.nn.collectives import sum_over_processes
from unlabeled.nn.lowrank import ADDED, merged_readers, readers
from unlabeled.nn.regions import varying


class Pair(NamedTuple):
    """A student, and what returns each parameter of its teacher and the one that it follows."""

    student: ref[nn.Module]
    own: list[Callable[[], Any]]
    followed: list[Callable[[], Any]]


_pairs: WeakKeyDictionary[nn.Module, Pair] = WeakKeyDictionary()  # by teacher: to search modules takes milliseconds


@torch.no_grad()
def follow_(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's parameters and buffers to the teacher by name, and turn the teacher's gradients off.

    Names that only the student has (a predictor, a mask token) are ignored. Raises KeyError where it lacks one.
    """
    source, own = student.state_dict(), teacher.state_dict()
    if missing := sorted(own.keys() - source.keys()):
        raise KeyError(f"the teacher has {missing}, which the student it follows lacks")
    for name, tensor in own.items():
        tensor.copy_(source[name])
    teacher.requires_grad_(False)


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, momentum: float, broken: Tensor | None = None) -> None:
    """p_t <- m p_t + (1 - m) p_s for every parameter of the teacher, weight-norm gains included; buffers stay.

    Computed as p_t + (1 - m) (p_s - p_t): equal parameters stay bit-identical. A teacher without low-rank additions
    follows the sums of weights and additions of a student that has them. Parameters are found in the first call: later
    they may be replaced by others, the modules that own them may not. Nothing moves where `broken` [] bool is true.
    """
    pair = _pairs.get(teacher)
    if pair is None or pair.student() is not student:
        pair = _pairs[teacher] = _paired(teacher, student)
    own, followed = ([read() for read in side] for side in (pair.own, pair.followed))
    _approach_(own, followed, 1 - momentum, broken)


def _paired(teacher: nn.Module, student: nn.Module) -> Pair:
    own = readers(teacher)
    alike = any(name.endswith(ADDED) for name in own)
    source = readers(student) if alike else merged_readers(student)
    return Pair(ref(student), list(own.values()), [source[name] for name in own])


def _approach_(own: list[Tensor], source: list[Tensor], rate: float, broken: Tensor | None) -> None:
    if broken is None:
        torch._foreach_lerp_(own, source, rate)
        return
    still = {dtype: torch.zeros((), dtype=dtype, device=broken.device) for dtype in {p.dtype for p in own}}
    rates = {dtype: torch.where(broken, zero, rate) for dtype, zero in still.items()}
    if broken.device.type == "cpu":
        torch._foreach_lerp_(own, source, [rates[p.dtype] for p in own])
        return
    # on a GPU `lerp` by a number that is there would be a kernel for each parameter
    ways = torch._foreach_sub(source, own)
    torch._foreach_mul_(ways, [rates[p.dtype] for p in own])
    torch._foreach_add_(own, ways)


class Centre(nn.Module):
    """The running mean c [K] of the teacher's logits, subtracted in centring (DINO, section 3.1, equation 4).

    Logits are noted in the forward pass and enter the centre after their step: a step uses the centre of the steps
    before it, for any number of micro-batches. The mean is over all processes.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self._step = -1
        self._noted: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def note(self, logits: Tensor, step: int, valid: Tensor | None = None) -> None:
        """Keep logits [M, K] of a micro-batch of optimizer step `step`; only the `valid` rows [M] bool count."""
        if step != self._step:  # forgets the logits of a skipped step too
            self._step, self._noted = step, []
        self._noted.append(_sums(logits, valid))

    @torch.no_grad()
    def update_(self) -> None:
        """c <- m c + (1 - m) mean of the noted logits; unchanged when no row of any process was valid."""
        totals, counts = (torch.stack(column).sum(0) for column in zip(*self._noted, strict=True))
        total, count = sum_over_processes(totals), sum_over_processes(counts)
        mean = torch.where(count > 0, total / count.clamp_min(1), self.value)
        self.value.lerp_(mean, 1 - self.momentum)
        self._noted = []


@varying
def _sums(logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum [K] of logits [M, K] over rows, and their number; of `valid` ones [M] alone."""
    logits = logits.float()
    if valid is None:
        return logits.sum(0), logits.new_full((), len(logits))
    return torch.where(valid.unsqueeze(1), logits, 0).sum(0), valid.sum()
