"""Workers are as many as a process has cores, however a machine, a launcher or a container shares them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from unlabeled import processes
from unlabeled.data.batch.loader import make_loader
from unlabeled.processes import cores, cores_each
from unlabeled.train.recipe import Run, spare_cores


@pytest.fixture(autouse=True)
def no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processes, "LIMITS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def has(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


@pytest.mark.parametrize(
    ("machine", "here", "workers"), [(16, 1, 15), (192, 8, 23), (64, 8, 7), (8, 8, 1), (4, 8, 1), (2, 1, 1), (1, 1, 1)]
)
def test_processes_share_the_cores_of_their_machine(
    machine: int, here: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, machine)
    if here > 1:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert (spare_cores(), Run().workers) == (workers, workers)
    assert cores_each() == max(1, machine // here)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "350000 100000\n"}, 4),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 32),
        ({"cpu.max": "max 100000\n"}, 32),
        ({"cpu.max": "broken"}, 32),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 32),
    ],
)
def test_a_container_limits_cores(
    files: dict[str, str], expected: int, no_limits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, 32)
    for name, text in files.items():
        (no_limits / name).parent.mkdir(exist_ok=True)
        (no_limits / name).write_text(text, encoding="utf-8")
    assert cores() == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "ahead"), [(0, None), (1, 4), (8, 4), (12, 2), (23, 2), (100, 2)])
def test_many_workers_make_fewer_batches_ahead_each(workers: int, ahead: int | None) -> None:
    made = make_loader(
        range(4),  # type: ignore[arg-type]
        [[0], [1]],
        workers=workers,
        device=torch.device("cpu"),
        timeout=1.0,
        collate=list,
    )
    assert made.prefetch_factor == ahead
