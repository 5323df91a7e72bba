"""`run.accumulate: auto`: the batch stays, whatever the number of processes, and none needs more memory than before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from unlabeled.launch.plan import Line, on_meta
from unlabeled.launch.resume import states
from unlabeled.train.job import Job

J = TypeVar("J", bound=Job)


def found(job: J, output: Path | None, processes: int) -> tuple[J, list[Line]]:
    """A job whose recipe has a number of micro-batches, and the line of the plan about it where that was `auto`.

    It is 1 where the pictures of a step depend on each other; otherwise the smallest by which the batch divides and
    with which no process sees more pictures at once than the run in `output` (None = a new one) did before.
    """
    run, batch = job.recipe.run, job.recipe.train.batch_size
    if run.accumulate != "auto":
        return job, []
    before = _at_once(output) if output else None
    number = next(_fitting(batch, processes, before), 1)
    why = "1" if before is None else f"{number}: a process has had {before} pictures at once before"
    if number > 1 and (crossing := on_meta(job.build).batch_statistics()):
        why = f"1, as pictures of a step depend on each other ({', '.join(crossing)}): a process needs more memory now"
        number = 1
    run = run.model_copy(update={"accumulate": number})
    return replace(job, recipe=job.recipe.model_copy(update={"run": run})), [("accumulate", f"auto = {why}")]


def _fitting(batch: int, processes: int, most: int | None) -> Iterator[int]:
    """Numbers of micro-batches by which a batch divides among processes, with at most so many pictures in each."""
    for number in range(1, batch // processes + 1):
        if batch % (processes * number) == 0 and (most is None or batch // (processes * number) <= most):
            yield number


def _at_once(output: Path) -> int | None:
    """The pictures that a process of the run in a folder saw at once; None = there is none."""
    for state in states(output):
        with suppress(ArithmeticError, ValueError, LookupError, TypeError):
            recipe, parts = state["recipe"], state["recipe"]["run"]["accumulate"]
            return int(recipe["train"]["batch_size"]) // (int(state["processes"]) * int(parts)) or None
    return None
