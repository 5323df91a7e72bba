"""Whether a run may be extended: only if every step so far is the same as in a longer run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlabeled.data.batch.sampler import total_steps
from unlabeled.pretrain.method import Progress
from unlabeled.train.optimizer import Optim
from unlabeled.train.recipe import Recipe
from unlabeled.train.watch import Watching


def obstacles(before: Recipe, after: Recipe, per_epoch: int, saved: dict[str, Any]) -> list[str]:
    """Reasons why a longer run would have taken other steps; empty if it would not.

    Args:
        before, after: recipes that differ in `train.epochs`.
        per_epoch: steps of an epoch.
        saved: the state of its checkpoint.
    """
    lengths = (before.train.epochs, after.train.epochs)
    old, new = (Progress(0, total_steps(epochs, per_epoch), 0.0, epochs) for epochs in lengths)
    return [
        *_of_rates(before.optim, old, new),
        *before.bound_to_length(old, new),
        *_of_watch(before.watching, saved, old.total_steps),
    ]


def _of_rates(optim: Optim, old: Progress, new: Progress) -> Iterator[str]:
    schedule = optim.schedule
    if schedule.ends:
        yield f"optim.schedule {schedule.name}: the learning rate comes down over the whole run (constant does not)"
    turns = [optim.warmup_epochs, *schedule.turns] if schedule.turns else []
    if [old.steps(epoch) for epoch in turns] != [new.steps(epoch) for epoch in turns]:
        yield f"optim.schedule {schedule.name}: its milestones would be other steps, as train.epochs is no whole number"
    if optim.weight_decay_end not in (None, optim.weight_decay):
        yield "optim.weight_decay_end: weight decay gets there at the end of the run"


def _of_watch(watch: Watching | None, saved: dict[str, Any], total: int) -> Iterator[str]:
    noted = saved.get("watch")
    if watch is None or noted is None:
        return
    before = noted.get("before") or noted
    if watch.patience is not None and before["since_best"] >= watch.patience:
        yield "watch.patience: it has ended the run, and would have ended a longer one there"
    out_of_turn = saved["step"] >= total and total % watch.every
    if out_of_turn and watch.keep == "best" and noted["best_step"] == total:
        yield f"watch.keep: the end, step {total}, is the best so far, out of turn, and those before are not kept"
