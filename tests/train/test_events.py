"""What a run notes beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlabeled.progress import Clock
from unlabeled.train.events import Events


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    file, said = tmp_path / "events.jsonl", list[str]()
    events = Events(file, said.append, Clock())
    events.add(0, "a checkpoint is refused")  # before it is known where the run goes on
    assert not file.exists()
    events.begin(0)
    events.add(3, "skipped a", "note", image="a")
    events.add(7, "it collapses")
    with open(file, "a", encoding="utf-8") as opened:
        opened.write('{"step": 9, "to')  # and killed
    events = Events(file, said.append, Clock())
    events.add(5, "falling back")
    events.begin(5)
    events.end(6, "stopped by SIGTERM", "stopped")
    events.end(6, "and no other way", "failed")
    assert [(event["step"], event["tone"], event["text"], event.get("state")) for event in read(file)] == [
        (0, "note", "started", "started"),
        (0, "warning", "a checkpoint is refused", None),
        (3, "note", "skipped a", None),
        (5, "note", "resumed at step 5", "started"),
        (5, "warning", "falling back", None),
        (6, "warning", "stopped by SIGTERM", "stopped"),
    ]
    assert read(file)[2]["image"] == "a"
    assert read(file)[-1]["seconds"] >= 0 and read(file)[-1]["cpu_seconds"] >= 0 and not said


def test_what_never_began_does_not_end(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", print, Clock())
    events.end(0, "an error before the first step", "failed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other_process", [False, True])
def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, other_process: bool) -> None:
    (file := tmp_path / "events.jsonl").mkdir()
    said, heard = list[str](), list[int]()
    events = Events(None if other_process else file, said.append, Clock())
    events.heard = lambda: heard.append(1)
    events.begin(0)
    events.add(1, "one")
    events.end(2, "two", "ended")
    expected = [] if other_process else [f"{file} cannot be written: Is a directory. The run goes on without it."]
    assert said == expected and len(heard) == 3
