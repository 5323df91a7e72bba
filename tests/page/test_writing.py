"""The writer of a run's page: what it costs, when it writes, and that nothing it meets disturbs the run."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import SHOWN_PRETRAIN, checkpoint_bytes, launch, metrics

from unlabeled.page import writing
from unlabeled.page.state import state
from unlabeled.page.writing import PageWriter


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(json.dumps({"steps": 9, "started": time.time() - 9}), encoding="utf-8")
    return tmp_path


def log(folder: Path, step: int) -> None:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")


@contextmanager
def quick(monkeypatch: pytest.MonkeyPatch, folder: Path, said: list[str]) -> Iterator[PageWriter]:
    """A writer that rests as long as it likes, but not 5 s."""
    monkeypatch.setattr(writing, "LEAST_REST", 0.0)
    monkeypatch.setattr(writing, "REST", 0.0)
    with PageWriter(folder, said.append) as writer:
        yield writer


def test_it_writes_at_the_start_after_news_and_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = folder / "index.html"
    with quick(monkeypatch, folder, []) as writer:
        wait_for(lambda: writer.pages == 1)
        assert "waiting for the first step" in page.read_text(encoding="utf-8")
        log(folder, 3)
        writer.wake()
        wait_for(lambda: "step 3 of 9" in page.read_text(encoding="utf-8"))
        assert "data-refresh" in page.read_text(encoding="utf-8")
        (folder / "events.jsonl").write_text('{"step": 3, "text": "done", "state": "ended"}\n', encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert "ended after 3 steps" in text and "data-refresh" not in text
    assert sorted(os.listdir(folder)) == ["events.jsonl", "index.html", "metrics.jsonl", "plan.json"]


def test_it_rests_much_longer_than_it_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = list[float]()
    idle = PageWriter._idle
    monkeypatch.setattr(PageWriter, "_idle", lambda self, due: (rests.append(due - time.monotonic()), idle(self, due)))
    with PageWriter(folder, print) as writer:
        wait_for(lambda: bool(rests))
        spent, pages = writer.cpu_seconds, writer.pages
        for _ in range(100):
            writer.wake()
        time.sleep(0.3)
        assert writer.pages == pages == 1
    assert rests[0] == pytest.approx(max(writing.LEAST_REST, 150 * spent), abs=0.2)
    assert writer.pages == 2


def test_a_run_that_is_silent_still_gives_signs_of_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SIGN", 0.01)
    os.utime(folder / "plan.json", (0, 0))
    with PageWriter(folder, print):
        wait_for(lambda: time.time() - os.stat(folder / "plan.json").st_mtime < 60)
    assert state(folder).condition == "waiting"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def bug(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a bug\nof two lines")


@pytest.mark.parametrize("broken", ["folder", "full", "bug", "gone"])
def test_a_page_that_cannot_be_written_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    said, more = list[str](), {"folder": "", "full": "No space left", "bug": "a bug", "gone": "No such file"}
    if broken == "folder":
        (folder / "index.html").mkdir()
    elif broken == "gone":
        (folder / "plan.json").unlink()
        folder.rmdir()
    else:
        monkeypatch.setattr(writing.html, "write", {"full": full, "bug": bug}[broken])
    with quick(monkeypatch, folder, said) as writer:
        for pages in range(1, 4):
            wait_for(lambda pages=pages: writer.pages >= pages)  # type: ignore[misc]
            writer.wake()
    assert len(said) == 1 and said[0].startswith(f"{folder / 'index.html'} cannot be written: ")
    assert more[broken] in said[0] and "\n" not in said[0]
    assert broken == "gone" or sorted(os.listdir(folder))[-1] == "plan.json"


def test_neither_a_step_nor_the_end_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.2)
    monkeypatch.setattr(writing.html, "write", lambda *_: time.sleep(3))
    said, before = list[str](), time.monotonic()
    with PageWriter(folder, said.append) as writer:
        for _ in range(1000):
            writer.wake()
        assert time.monotonic() - before < 1
    assert time.monotonic() - before < 2
    assert said and "not done within 0.2 s" in said[0]


def break_pages() -> None:
    writing.html.write = bug  # type: ignore[assignment]


def test_a_run_is_the_same_with_and_without_and_says_how_it_went(tmp_path: Path) -> None:
    """In one process, and in two; where its files cannot be written, and where it is killed and goes on."""
    (tmp_path / "tiny.yaml").write_text(SHOWN_PRETRAIN, encoding="utf-8")

    def run(name: str, *more: str, **how: Any) -> Path:
        codes = launch("pretrain", [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / name}", *more], **how)
        assert codes == ([-9] if "kill" in how else [0] * how.get("world", 1))
        return tmp_path / name

    without, page = run("without", "run.page=false"), run("page", kill={"step": 8})
    assert not (without / "index.html").exists() and state(without).words.startswith("ended after 15 steps, ")
    killed = time.time() + 1000
    assert state(page, killed).condition == "silent" and "step 7 of 15" in state(page, killed).words
    run("page")
    assert state(page).condition == "ended" and state(page).total == 15
    events = [json.loads(line) for line in (page / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(event["step"], event.get("state")) for event in events] == [(0, "started"), (6, "started"), (15, "ended")]
    (broken := tmp_path / "broken").mkdir()
    for name in ("index.html", "events.jsonl", "plan.json"):
        (broken / name).mkdir()
    run("broken", hook=break_pages)
    for one in (page, broken):
        assert checkpoint_bytes(one, 15)["model.safetensors"] == checkpoint_bytes(without, 15)["model.safetensors"]
        assert [line["loss"] for line in metrics(one)] == [line["loss"] for line in metrics(without)]
    plan = json.loads((page / "plan.json").read_text(encoding="utf-8"))
    assert plan["bands"]["explained"]["low"] == 0.02 and plan["first_step"] == 6 and plan["versions"]["torch"]
    assert ["steps", "15 = 3 epochs of 5 steps"] in plan["lines"]

    two = run("two", world=2)
    assert "ended after 15 steps" in (two / "index.html").read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in (two / "events.jsonl").read_text(encoding="utf-8").splitlines()] == [
        0,
        15,
    ]
