"""What a run writes about itself, however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from unlabeled.errors import Stopped, UserError
from unlabeled.launch.record import recorded
from unlabeled.page.state import state
from unlabeled.pretrain.method import Symptom
from unlabeled.progress import Clock
from unlabeled.train.engine import Engine
from unlabeled.train.events import Events


def engine(output: Path, say: Callable[[str], None], main: bool = True) -> Engine:
    """What is asked of an engine, at step 3 of 9."""
    clock = Clock()
    events = Events(output / "events.jsonl" if main else None, say, clock)
    symptoms = [Symptom("rank", "a collapse", "", at_most=1.23456), Symptom("entropy", "another", "", at_least=6.9)]
    made = SimpleNamespace(
        output=output,
        job=SimpleNamespace(recipe=SimpleNamespace(run=SimpleNamespace(page=True))),
        accelerator=SimpleNamespace(is_main_process=main),
        display=SimpleNamespace(say=say),
        tell=lambda text: (say(text), events.add(3, text)),
        method=SimpleNamespace(symptoms=lambda: symptoms),
        bad=SimpleNamespace(keys={"a", "b"}),
        **{"events": events, "clock": clock, "step": 3, "total_steps": 9, "skipped": 1},
    )
    return cast("Engine", made)


@pytest.mark.parametrize(
    "error, how, words",
    [
        (None, "ended", "ended after 0 steps"),
        (UserError("no room\nanywhere"), "failed", "no room"),
        (MemoryError(), "failed", "MemoryError"),
        (Stopped("stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
    ],
)
def test_every_end_stands_on_the_page(tmp_path: Path, error: BaseException | None, how: str, words: str) -> None:
    run = engine(tmp_path, print)
    with nullcontext() if error is None else pytest.raises(type(error)), recorded(run, [("steps", "9")]):
        run.events.begin(3)
        if error is not None:
            raise error
    assert state(tmp_path).condition == how and state(tmp_path).words.startswith(words)
    assert words in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_plan_has_healthy_values_for_the_page(tmp_path: Path) -> None:
    with recorded(engine(tmp_path, print), [("steps", "9"), ("", "of <b>")]):
        pass
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (plan["steps"], plan["first_step"], plan["lines"]) == (9, 3, [["steps", "9"], ["", "of <b>"]])
    assert plan["bands"] == {
        "rank": {"low": 1.235, "high": None, "text": "Outside: a collapse."},
        "entropy": {"low": None, "high": 6.9, "text": "Outside: another."},
    }


def test_a_plan_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    said = list[str]()
    with recorded(engine(tmp_path, said.append), []):
        pass
    assert said == ["plan.json cannot be written: Is a directory. The run goes on without it."]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    run = engine(tmp_path, print, main=False)
    with recorded(run, []):
        run.events.begin(3)
    assert not list(tmp_path.iterdir())
