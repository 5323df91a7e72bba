"""Where a run stands, in words, of every way in which its folder can be found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unlabeled.page.state import SILENT, state

NOW = 1_800_000_000.0
RECIPE = (
    "name: tiny\ntrain:\n  epochs: 5.0\n  batch_size: 8\nrun:\n  output: null\n  page: true\nmethod:\n  name: mae\n"
)
TASK = 'name: "no"\ntrain:\n  batch_size: 8\n  epochs: 5.0\nencoder: e\ntask:\n  name: classify\n  method: x\n'


def run(
    folder: Path, steps: int = 0, ago: float = 1.0, events: list[dict[str, Any]] | None = None, **plan: Any
) -> Path:
    """A run that was started 100 s before its newest line, `ago` seconds before `NOW`."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    lines = [{"step": i, "loss": 1 / i, "epoch": i / 10, "images_per_s": 512.0} for i in range(1, steps + 1)]
    files = {
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in events or []),
        "plan.json": json.dumps({"steps": 50, "started": NOW - ago - 100, "first_step": 0, **plan}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        os.utime(folder / name, (NOW - ago, NOW - ago))
    return folder


def test_it_runs(tmp_path: Path) -> None:
    found = state(run(tmp_path, steps=25), NOW)
    assert found.words == "running: step 25 of 50, 50 %, about 2 min left, 512 images/s"  # 100 s for 25 steps
    assert (found.name, found.kind, found.trains, found.step, found.total) == ("tiny", "pretrain", "mae", 25, 50)
    assert (found.left, found.loss, found.modified, found.tone) == (100.0, 0.04, NOW - 1, None)


def test_the_time_left_is_that_of_this_part_of_the_run(tmp_path: Path) -> None:
    found = state(run(tmp_path, steps=25, first_step=20), NOW)
    assert found.left == 25 * 100 / 5


def test_it_waits(tmp_path: Path) -> None:
    assert state(run(tmp_path), NOW).words == "waiting for the first step"
    resumed = state(run(tmp_path, steps=20, first_step=20), NOW)
    assert resumed.words == "resumed at step 20" and resumed.condition == "waiting"


@pytest.mark.parametrize("steps, words", [(0, "step 0 of 50"), (20, "step 20 of 50")])
def test_it_gives_no_sign_of_life(tmp_path: Path, steps: int, words: str) -> None:
    found = state(run(tmp_path, steps=steps, ago=14 * 60), NOW)
    assert found.words.startswith(f"no sign of life for 14 min, since {words} (killed?).")
    assert found.tone == "warning" and found.left is None
    os.utime(tmp_path / "plan.json", (NOW - SILENT + 1, NOW - SILENT + 1))  # a long evaluation
    assert state(tmp_path, NOW).condition != "silent"


def test_without_a_page_its_own_pace_is_waited_for(tmp_path: Path) -> None:
    run(tmp_path, steps=1, ago=400)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("page: true", "page: false"), encoding="utf-8")
    assert state(tmp_path, NOW).condition == "running"  # a line took 100 s
    run(tmp_path, steps=20, ago=400)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("page: true", "page: false"), encoding="utf-8")
    assert state(tmp_path, NOW).condition == "silent"  # lines took 5 s


def test_it_ended_or_was_stopped(tmp_path: Path) -> None:
    stopped = {"step": 20, "tone": "warning", "text": "stopped by SIGTERM at step 20; go on", "state": "stopped"}
    found = state(run(tmp_path, steps=20, ago=9e5, events=[stopped]), NOW)
    assert (found.condition, found.words, found.tone) == ("stopped", stopped["text"], "warning")
    resumed = {"step": 20, "tone": "note", "text": "resumed", "state": "started"}
    assert state(run(tmp_path, steps=21, first_step=20, events=[stopped, resumed]), NOW).condition == "running"
    failed = {"step": 30, "tone": "stop", "text": "the disk is full", "state": "failed"}
    found = state(run(tmp_path, steps=30, events=[stopped, resumed, failed]), NOW)
    assert (found.condition, found.words, found.tone) == ("failed", "the disk is full", "stop")
    ended = {"step": 50, "tone": "note", "text": "done", "state": "ended", "seconds": 65.0}
    noted = {"step": 50, "tone": "note", "text": "trackers are switched off"}
    found = state(run(tmp_path, steps=50, ago=9e5, events=[resumed, ended, noted]), NOW)
    assert (found.condition, found.words, found.tone) == (
        "ended",
        "ended after 50 steps, in 65 s",
        None,
    )


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    run(tmp_path, steps=20)
    for name in ("plan.json", "events.jsonl"):
        (tmp_path / name).unlink()
    found = state(tmp_path, NOW)
    assert (found.condition, found.total) == ("silent", 50)  # 5 epochs, of which 20 steps are 2
    (tmp_path / "export").mkdir()
    assert state(tmp_path, NOW).words == "ended after 20 steps"


def test_fine_tuning_and_names_that_yaml_quotes(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    (tmp_path / "recipe.yaml").write_text(TASK, encoding="utf-8")
    found = state(tmp_path, NOW)
    assert (found.name, found.kind, found.trains) == ("no", "finetune", "classify")


def test_the_newest_scores(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "knn": 20.5, "linear": NaN}\n{"step": 4, "loss": 9.0}\n')
    found = state(tmp_path, NOW)
    assert (found.scores, found.loss, found.step) == ({"knn": 20.5}, 9.0, 4)


def test_the_newest_scores_may_lie_far_back(tmp_path: Path) -> None:
    folder = run(tmp_path)
    lines = [{"step": i, "loss": 1 / i, "padding": "x" * 200} for i in range(1, 2001)]
    lines[1200:1200] = [{"step": 1200, "knn": 41.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = state(folder, NOW)
    assert found.scores == {"knn": 41.5} and (found.step, found.loss) == (2000, 1 / 2000)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as opened:
        opened.write('{"step": 2001, "knn": 42.0}\n{"step": 2001, "loss": bro')
    assert state(folder, NOW).scores == {"knn": 42.0} and state(folder, NOW).step == 2001


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\n", b"[" * 10**5, b'{"step": {}, "steps": "x", "started": "never"}\n']
)
def test_damaged_files_are_no_error(tmp_path: Path, content: bytes) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "plan.json", "recipe.yaml"):
        (tmp_path / name).write_bytes(content)
    assert state(tmp_path, NOW).step == 0
    for name in ("metrics.jsonl", "events.jsonl", "plan.json", "recipe.yaml"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)  # which nobody will ever write to
    assert state(tmp_path, NOW).condition == "silent"


def test_a_list_of_two_hundred_runs_is_fast(tmp_path: Path) -> None:
    """Of 4,000 logged lines each, of which only the end is read."""
    folder = run(tmp_path / "run", steps=4000)
    started = time.process_time()
    for _ in range(200):
        state(folder, NOW)
    assert time.process_time() - started < 1


def test_neither_torch_nor_timm_is_imported() -> None:
    code = "import unlabeled.page.run, sys; sys.exit(any(name in sys.modules for name in ('torch', 'timm')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
