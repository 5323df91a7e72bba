"""`run.accumulate: auto` finds micro-batches that fit the processes and what they had before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unlabeled.data.batch.sampler import per_process
from unlabeled.errors import UserError
from unlabeled.launch import accumulation
from unlabeled.train.checkpoint import Checkpoints
from unlabeled.train.job import Job
from unlabeled.train.recipe import Run


class Recipe(SimpleNamespace):
    def model_copy(self, update: dict[str, Any]) -> Recipe:
        return Recipe(**{**vars(self), **update})


def find(output: Path, processes: int, accumulate: Any = "auto", batch: int = 24) -> tuple[int, list[Any]]:
    """The number that is found for a method whose pictures do not depend on each other, and the plan's line."""
    made: Any = SimpleNamespace(batch_statistics=list)
    recipe: Any = Recipe(run=Run(accumulate=accumulate), train=SimpleNamespace(batch_size=batch))
    nothing: Any = None
    job, lines = accumulation.found(Job(recipe, lambda: made, nothing, nothing), output, processes)
    return job.recipe.run.micro_batches, lines


def save(output: Path, processes: int, accumulate: int, batch: int = 24) -> None:
    recipe = {"train": {"batch_size": batch}, "run": {"accumulate": accumulate}}
    Checkpoints(output / "checkpoints", 1, None, print).save(
        3, {}, {"step": 3, "processes": processes, "recipe": recipe}
    )


@pytest.mark.parametrize(
    ("before", "processes", "expected"),
    [
        (None, 4, 1),
        ((4, 1), 4, 1),
        ((4, 1), 2, 2),
        ((4, 1), 3, 2),  # 8 pictures are too many, 6 and 4 are not: 4 divides
        ((4, 1), 1, 4),
        ((4, 1), 8, 1),
        ((8, 1), 1, 8),
        ((2, 3), 1, 6),
        ((2, 3), 2, 3),
        ((2, 3), 6, 1),
        ((24, 1), 1, 24),
        ((24, 1), 8, 3),
        ((4, 1), 5, 1),  # which is refused then
    ],
)
def test_what_is_found(
    tmp_path: Path, before: tuple[int, int] | None, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulation, "on_meta", lambda build: build())
    if before:
        save(tmp_path, *before)
    number, lines = find(tmp_path, processes)
    assert number == expected and lines[0][1].startswith(f"auto = {expected}")
    assert find(tmp_path, processes, 3) == (3, []), "a number is a number"


def test_where_pictures_depend_on_each_other_it_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 4, 1)
    monkeypatch.setattr(accumulation, "on_meta", lambda _: SimpleNamespace(batch_statistics=lambda: ["negatives"]))
    number, [(_, text)] = find(tmp_path, 2)
    assert number == 1 and "(negatives): a process needs more memory now" in text


def test_a_damaged_state_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulation, "on_meta", lambda build: build())
    checkpoints = Checkpoints(tmp_path / "checkpoints", 9, None, print)
    for step, state in enumerate(({}, {"processes": 0}, {"processes": 2, "recipe": []}, {"processes": "x"}), 1):
        checkpoints.save(
            step, {}, {"step": step, "recipe": {"train": {"batch_size": 8}, "run": {"accumulate": 1}}, **state}
        )
        assert find(tmp_path, 1)[0] == 1


@pytest.mark.parametrize(
    ("world", "accumulate", "ways"),
    [
        (5, 1, "a multiple of 5, such as 25, or 4 processes."),
        (3, 16, "such as 48, or run.accumulate=auto."),
        (4, 12, "2 pro"),
    ],
)
def test_what_does_not_divide_is_said_with_ways_out(world: int, accumulate: int, ways: str) -> None:
    with pytest.raises(UserError, match=ways):
        per_process(24, world, accumulate)
