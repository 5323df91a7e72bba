"""A run killed anywhere and started again ends with the very bits of one that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import at, to_this_one
from support import CONTEXT, TINY_FINETUNE, TINY_PRETRAIN, checkpoint_bytes, launch, metrics

from unlabeled.errors import UserError
from unlabeled.files import claim
from unlabeled.manifest import Damaged
from unlabeled.signals import EXIT_STOPPED
from unlabeled.train.checkpoint import load
from unlabeled.train.snapshot import check

LAST = 15  # 3 epochs of 5 steps
YEAR = 365 * 24 * 3600


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, an export to fine-tune, and one uninterrupted run of each stage."""
    home = tmp_path_factory.mktemp("resume")
    (home / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (home / "finetune.yaml").write_text(
        TINY_FINETUNE.replace("UNSET", str(home / "pretrain" / "export")), encoding="utf-8"
    )
    for stage in ("pretrain", "finetune"):
        assert launch(stage, command(home, stage, home / stage)) == [0]
    return home


def command(home: Path, stage: str, output: Path, *more: str) -> list[str]:
    return [str(home / f"{stage}.yaml"), f"run.output={output}", *more]


def assert_same_end(home: Path, stage: str, output: Path) -> None:
    ours, theirs = checkpoint_bytes(output, LAST), checkpoint_bytes(home / stage, LAST)
    assert ours.keys() == theirs.keys() == {"model.safetensors", "optimizer.safetensors", "rng-0.safetensors"}
    for name, data in theirs.items():
        assert ours[name] == data, f"{name} differs"
    losses = [(line["step"], line["loss"]) for line in metrics(output) if "loss" in line]
    assert losses == [(line["step"], line["loss"]) for line in metrics(home / stage) if "loss" in line]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([{"step": 2}], id="before the first checkpoint"),
        pytest.param([{"step": 7}, {"step": 8}], id="twice in one epoch"),
        pytest.param([{"step": 10}, {"save": 12, "at": "first file"}], id="at an epoch's end, then in a save"),
        pytest.param([{"save": 6, "at": "written"}, {"save": 9, "at": "renamed"}], id="in two saves"),
    ],
)
def test_killed_and_resumed(home: Path, tmp_path: Path, stage: str, workers: int, kills: list[dict[str, Any]]) -> None:
    arguments = command(
        home,
        stage,
        tmp_path,
        f"run.workers={workers}",
        "run.checkpoint_every=1" if len(kills) > 1 else "run.checkpoint_every=3",
    )
    for kill in kills:
        assert launch(stage, arguments, kill=kill) == [-signal.SIGKILL]
    for file in tmp_path.glob("checkpoints/step-*"):  # as if the clock had been set back before every save
        os.utime(file, (-int(file.name[5:]) * YEAR, -int(file.name[5:]) * YEAR))
    # whatever was made with other workers goes on with these
    assert launch(stage, [*arguments, f"run.workers={1 - workers // 2}"], hook=_a_year_back) == [0]
    assert_same_end(home, stage, tmp_path)


def _a_year_back() -> None:
    """Set this process's clock back a year."""
    now, precise = time.time, time.time_ns
    time.time = lambda: now() - YEAR
    time.time_ns = lambda: precise() - YEAR * 10**9


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_accumulation_resumes_exactly(home: Path, tmp_path: Path, stage: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch(stage, command(home, stage, whole, "run.accumulate=2")) == [0]
    assert launch(stage, command(home, stage, killed, "run.accumulate=2"), kill={"step": 8}) == [-signal.SIGKILL]
    assert launch(stage, command(home, stage, killed, "run.accumulate=2", "run.workers=2")) == [0]
    assert checkpoint_bytes(whole, LAST) == checkpoint_bytes(killed, LAST)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = command(home, "pretrain", tmp_path, "run.workers=2")
    assert launch("pretrain", arguments, kill={"step": 7, "signal": number}) == [EXIT_STOPPED]
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved[-1] == "step-00000009"  # a step later
    assert launch("pretrain", arguments) == [0]
    assert_same_end(home, "pretrain", tmp_path)


def _note_workers(file: str) -> None:
    """Write down the loader workers' process numbers."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers

    start = Workers.__init__

    def noted(self: Any, loader: Any) -> None:
        start(self, loader)
        Path(file).write_text(" ".join(str(worker.pid) for worker in self._workers), encoding="utf-8")

    Workers.__init__ = noted  # type: ignore[method-assign]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_workers_end_with_a_killed_run(home: Path, tmp_path: Path) -> None:
    arguments, file = command(home, "pretrain", tmp_path / "run", "run.workers=2"), tmp_path / "workers"
    assert launch("pretrain", arguments, kill={"step": 7}, hook=partial(_note_workers, str(file))) == [-signal.SIGKILL]
    numbers = file.read_text(encoding="utf-8").split()
    assert len(numbers) == 2
    deadline = time.monotonic() + 30  # workers look for their parent every 5 seconds
    while any(map(is_running, numbers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(is_running, numbers))


def is_running(number: str) -> bool:
    status = Path("/proc") / number / "status"
    return status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8")


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with claim(tmp_path, "run.output"):
        other = launch_claim(tmp_path)
    assert other == 3
    assert launch_claim(tmp_path) == 0


def launch_claim(output: Path) -> int:
    process = CONTEXT.Process(target=_claim_or_3, args=(output,))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _claim_or_3(output: Path) -> None:
    try:
        claim(output, "run.output")
    except UserError:
        sys.exit(3)


def test_evaluation_changes_nothing(home: Path, tmp_path: Path) -> None:
    arguments = command(home, "pretrain", tmp_path, "evaluate.every=2", "evaluate.knn.k=3", "evaluate.crop_pct=1.0")
    assert launch("pretrain", arguments) == [0]
    assert_same_end(home, "pretrain", tmp_path)
    assert [line["step"] for line in metrics(tmp_path) if "knn" in line] == [2, 4, 6, 8, 10, 12, 14, 15]


def test_damaged_checkpoints_cost_no_other(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped before it comes to their steps again, a run goes on from where it was stopped."""
    shutil.copytree(home / "pretrain", tmp_path, dirs_exist_ok=True)
    for step in (12, 15):
        file = tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    arguments = command(home, "pretrain", tmp_path, "run.keep_last=1")
    stopped = partial(at, "unlabeled.train.engine:Engine._forward_backward", to_this_one)  # in the first step
    assert launch("pretrain", arguments, hook=stopped) == [EXIT_STOPPED]
    said = capsys.readouterr().err
    assert "step-00000015 is refused" in said and "falling back to" in said and "step-00000009" in said
    refused = ["refused-step-00000012", "refused-step-00000015"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [*refused, "step-00000011"]
    for name in ("metrics.jsonl", "bad_samples.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"step": null}\n{"key": "\xff"}\n{"step": 12, "lo')
    assert launch("pretrain", arguments) == [0]
    assert "resuming from" in (said := capsys.readouterr().err) and "step-00000011" in said
    assert_same_end(home, "pretrain", tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("step", "skipped", "skipped_in_a_row") for value in (-1, 1.5, "1", None, True)),
        *(("processes", value) for value in (0, 2, None)),
        *((name, value) for name in ("evaluated", "facts", "recipe") for value in ([], None, "x")),
        ("evaluated", {"knn": "x"}),
        ("watch", {"best": 1.0}),
        ("watch", [1]),
        ("scaler", 3),
    ],
)
def test_a_state_that_cannot_be_is_refused(home: Path, field: str, value: Any) -> None:
    good = load(home / "pretrain" / "checkpoints" / f"step-{LAST:08d}")
    check(good)
    for state in ({**good.state, field: value}, {k: v for k, v in good.state.items() if k != field or k == "watch"}):
        if state != good.state:
            with pytest.raises(Damaged, match=field if field != "processes" else "process"):
                check(good._replace(state=state))


@pytest.mark.parametrize("name", ["model", "optimizer", "rng-0"])
def test_a_checkpoint_without_a_part_is_refused(home: Path, name: str) -> None:
    good = load(home / "pretrain" / "checkpoints" / f"step-{LAST:08d}")
    lacking = {stem: part for stem, part in good.tensors.items() if stem != name}
    with pytest.raises(Damaged):
        check(good._replace(tensors=lacking))
    with pytest.raises(Damaged):
        check(good._replace(tensors={**good.tensors, "rng-0": {"cpu": torch.zeros(3, dtype=torch.uint8)}}))


def test_a_changed_recipe_is_refused_with_a_diff(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "pretrain", tmp_path, dirs_exist_ok=True)
    assert launch("pretrain", command(home, "pretrain", tmp_path, "optim.base_lr=0.02", "data.seed=3")) == [2]
    said = capsys.readouterr().err
    assert "optim.base_lr" in said and "0.03 -> 0.02" in said and "data.seed" in said
    assert "Traceback" not in said
    assert launch("pretrain", command(home, "pretrain", tmp_path, "run.log_every=2", "evaluate=null")) == [0]


def test_fresh_refuses_then_overwrites(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "pretrain", tmp_path, dirs_exist_ok=True)
    arguments = command(home, "pretrain", tmp_path, "optim.base_lr=0.02")
    assert launch("pretrain", [*arguments, "--fresh"]) == [2]
    assert "--force" in capsys.readouterr().err
    assert launch("pretrain", [*arguments, "--fresh", "--force"]) == [0]
    assert checkpoint_bytes(tmp_path, LAST) != checkpoint_bytes(home / "pretrain", LAST)


def _broken_losses() -> None:
    """Make the loss NaN at steps 4 and 5."""
    from unlabeled.pretrain.methods.mae import MAE

    forward = MAE.forward

    def poisoned(self: MAE, batch: Any, progress: Any) -> Any:
        output = forward(self, batch, progress)
        return output._replace(loss=output.loss * float("nan")) if progress.step in (4, 5) else output

    MAE.forward = poisoned  # type: ignore[method-assign]


def test_broken_steps_are_skipped_and_counted(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = "run.checkpoint_every=1"
    assert launch("pretrain", command(home, "pretrain", tmp_path / "a", every), hook=_broken_losses) == [0]
    before, after = (checkpoint_bytes(tmp_path / "a", step) for step in (4, 6))
    assert before["model.safetensors"] == after["model.safetensors"]
    assert before["optimizer.safetensors"] == after["optimizer.safetensors"]
    assert metrics(tmp_path / "a")[-1]["skipped"] == 2
    assert launch("pretrain", command(home, "pretrain", tmp_path / "b", "run.max_skipped=2"), hook=_broken_losses) == [
        2
    ]
    said = capsys.readouterr().err
    assert "2 steps in a row" in said and "step 5" in said and "Traceback" not in said


def test_metrics_are_json_without_repeats(home: Path) -> None:
    lines = metrics(home / "pretrain")
    assert [line["step"] for line in lines] == list(range(1, LAST + 1))
    assert {"loss", "lr", "grad_norm", "images_per_s", "data_wait", "epoch", "skipped", "explained"} <= lines[0].keys()
    assert lines[0]["lr"] == 0 and lines[5]["lr"] == pytest.approx(0.03 * 8 / 256)
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    state = json.loads(
        (home / "pretrain" / "checkpoints" / f"step-{LAST:08d}" / "state.json").read_text(encoding="utf-8")
    )
    assert state["step"] == LAST
