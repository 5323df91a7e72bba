"""The teacher: a second network that follows a student, and the running centre of what it says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlabeled.nn.collectives import sum_over_processes


@torch.no_grad()
def follow_(teacher: nn.Module, student: nn.Module) -> None:
    """Give the teacher the student's parameters and buffers, by name, and turn its gradients off.

    What only the student has (a predictor, a mask token) is left out.

    Raises:
        KeyError: the teacher has a name that the student lacks.
    """
    source = student.state_dict()
    own = teacher.state_dict()
    missing = sorted(own.keys() - source.keys())
    if missing:
        raise KeyError(f"the teacher has {missing}, which the student it follows lacks")
    for name, tensor in own.items():
        tensor.copy_(source[name])
    teacher.requires_grad_(False)


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """p_t <- m p_t + (1 - m) p_s for every parameter of the teacher, weight-norm gains included; buffers stay.

    Written p_t + (1 - m) (p_s - p_t), so that parameters which agree stay bit-identical.
    """
    source = dict(student.named_parameters())
    names, parameters = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(list(parameters), [source[name] for name in names], 1 - momentum)


class Centre(nn.Module):
    """The running mean c [K] of the teacher's logits that centring subtracts (DINO, section 3.1, equation 4).

    Logits are noted in a forward and enter the centre after the step that they were part of, so a step sees the centre
    of the steps before it, whatever its number of micro-batches. The mean is over all processes.

    Args:
        prototypes: K.
        momentum: of the running mean, in [0, 1).
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
        if step != self._step:  # also forgets a step that was skipped
            self._step, self._noted = step, []
        logits = logits.float()
        if valid is None:
            self._noted.append((logits.sum(0), logits.new_full((), len(logits))))
        else:
            self._noted.append((torch.where(valid.unsqueeze(1), logits, 0).sum(0), valid.sum()))

    @torch.no_grad()
    def update_(self) -> None:
        """c <- m c + (1 - m) mean of what was noted; unchanged when no row of any process was valid."""
        totals, counts = (torch.stack(column).sum(0) for column in zip(*self._noted, strict=True))
        total, count = sum_over_processes(totals), sum_over_processes(counts)
        mean = torch.where(count > 0, total / count.clamp_min(1), self.value)
        self.value.lerp_(mean, 1 - self.momentum)
        self._noted = []
