"""The page of a run from synthetic folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlabeled.page import run
from unlabeled.page.run import Reader, document
from unlabeled.report.document import Document, Marked, Table, Text
from unlabeled.report.visuals import Band, Chart, Mark, Slides

COLLAPSE = "it collapses <script> (teacher_entropy 6.9 since step 1)"
STILL = "knn stands still: rates x 0.1 from here"
NOW = 1_800_000_000.0


def put(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: tiny\nmethod:\n  name: dino\n", encoding="utf-8")
    plan = {
        "steps": 100,
        "started": NOW - 60,
        "first_step": 0,
        "lines": [["pictures", "12"], ["", "of <b>"]],
        "versions": {"torch": "2.0"},
        "bands": {"teacher_entropy": {"low": None, "high": 6.9, "text": "ln 1024"}},
    }
    put(tmp_path, "plan.json", plan)
    lines = [{"step": i, "loss": 2.0, "skipped": 0, "teacher_entropy": 5.0, "odd_one": 1} for i in range(1, 9)]
    put(tmp_path, "metrics.jsonl", {"step": 0, "knn": 30.0}, *lines[:4], {"step": 4, "knn": 40.5}, *lines[4:],
        {"step": 8, "knn": 39.0})  # fmt: skip
    put(
        tmp_path,
        "events.jsonl",
        {"step": 0, "tone": "note", "text": "started", "state": "started"},
        {"step": 3, "tone": "warning", "text": "warning: it collapses <script> (teacher_entropy 6.9 since step 1)"},
        {"step": 4, "tone": "note", "text": "skipped a.jpg", "image": "a.jpg"},
        {"step": 5, "tone": "note", "text": "knn stands still: rates x 0.1 from here"},
        {"step": 8, "tone": "note", "text": "done", "state": "ended", "seconds": 61.0, "cpu_seconds": 100.0},
    )
    (tmp_path / "pictures").mkdir()
    for step in range(0, 100, 4):
        (tmp_path / "pictures" / f"step-{step:08d}.png").write_bytes(b"x" * 1000)
    return tmp_path


def charts(found: Document) -> dict[str, Chart]:
    return {part.title: part for part in found.parts if isinstance(part, Chart)}


def test_what_stands_on_the_page_and_in_which_order(folder: Path) -> None:
    put(folder, "bad_samples.jsonl", {"key": "a.jpg", "reason": "truncated"})
    found = document(folder, now=NOW)
    assert found.title == "tiny (pretrain)"
    headings = [part.text for part in found.parts if isinstance(part, Text) and part.kind == "heading"]
    assert headings == [
        "Warnings",
        "Loss",
        "Scores on labelled images",
        "Teacher and student",
        "Other measures of the method",
        "What it sees and draws",
        "Skipped images",
        "Course and cost",
        "Plan",
        "Versions",
        "Recipe",
    ]
    state, warnings = [part for part in found.parts if isinstance(part, Table)][:2]
    assert list(state.rows[0]) == ["state", "ended after 8 steps, in 61 s"]
    assert list(state.rows[-1]) == ["kNN", "39 at step 8; highest 40.5 at step 4; 30 at the start"]
    assert warnings.rows == [["5", Marked(STILL, "note")], ["3", Marked(COLLAPSE, "warning")]]
    assert Table.facts([("pictures", "12"), ("", "of <b>")]) in found.parts
    [course] = [part for part in found.parts if isinstance(part, Table) and "CPU time" in part.head]
    assert course.rows == [["0", "started", "", ""], ["8", "done", "61 s", "2 min"]]
    assert found.parts[-1] == Text((folder / "recipe.yaml").read_text(), "code")
    assert json.loads(json.dumps(found.data))["scores"] == {"knn": 39.0}


def test_curves_have_bands_marks_and_a_start(folder: Path) -> None:
    found = charts(document(folder, now=NOW))
    assert list(found) == ["Loss", "kNN", "Entropy of the teacher", "odd one"]  # no step was skipped
    entropy = found["Entropy of the teacher"]
    assert entropy.text.startswith("teacher_entropy: ") and found["kNN"].text.startswith("Accuracy of")
    assert found["odd one"].text == ""
    assert entropy.band == Band(None, 6.9, "ln 1024") and entropy.marks == [Mark(3, COLLAPSE)]
    assert found["kNN"].marks == [Mark(5, STILL, "note")]
    assert found["Loss"].marks == [Mark(3, COLLAPSE), Mark(5, STILL, "note")]
    measured, start = found["kNN"].lines
    assert (measured.x, measured.y) == ([0, 4, 8], [30.0, 40.5, 39.0])
    assert (start.name, start.x, start.y) == ("start", [0, 8], [30.0, 30.0])


def test_few_images_of_many_steps_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MOST_FRAMES", 5)
    [slides] = [part for part in document(folder, now=NOW).parts if isinstance(part, Slides)]
    assert [frame.name for frame in slides.frames] == [f"step {step}" for step in (20, 40, 56, 76, 96)]
    assert slides.frames[-1].file == "pictures/step-00000096.png"
    monkeypatch.setattr(run, "FRAME_BYTES", 2500)
    [slides] = [part for part in document(folder, now=NOW).parts if isinstance(part, Slides)]
    assert len(slides.frames) == 2


def test_few_of_many_skipped_images_are_shown(folder: Path) -> None:
    put(folder, "bad_samples.jsonl", *({"key": f"{i}.jpg", "reason": "r"} for i in range(1000)))
    found = document(folder, now=NOW)
    [shown] = [part for part in found.parts if isinstance(part, Table) and part.head == ("image", "why")]
    assert len(shown.rows) == run.MOST_SKIPPED
    assert any(
        isinstance(part, Text) and part.text.startswith("1,000 images could not be used") for part in found.parts
    )


def test_a_reader_that_is_kept_gives_the_same_page(folder: Path) -> None:
    reader = Reader(folder)
    document(folder, reader, NOW)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 9, "loss": 3.0}\n')
    put(folder, "events.jsonl", {"step": 0, "tone": "stop", "text": "cut back and shorter"})
    put(folder, "bad_samples.jsonl", {"key": "a", "reason": "b"})
    assert document(folder, reader, NOW) == document(folder, now=NOW)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"[]\n", b'{"lines": 3, "versions": [1], "bands": {"loss": 1}}\n'])
def test_damaged_files_leave_a_page(folder: Path, content: bytes) -> None:
    for name in ("plan.json", "events.jsonl", "metrics.jsonl", "bad_samples.jsonl", "recipe.yaml"):
        (folder / name).write_bytes(content)
    assert document(folder, now=NOW).title == folder.name
    assert document(folder / "none", now=NOW).title == "none"
