"""Several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

from unlabeled.page.compare import document
from unlabeled.page.curves import Curves
from unlabeled.report.document import Marked, Table, Text
from unlabeled.report.visuals import Chart

NOW = 1_800_000_000.0


def run(folder: Path, loss: float, *, recipe: str, knn: tuple[float, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"name: {folder.name}\nmethod:\n  name: mae\n{recipe}", encoding="utf-8")
    lines = [{"step": i, "loss": loss / i} for i in range(1, 4)] + [
        {"step": 3 + i, "knn": k} for i, k in enumerate(knn)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "events.jsonl").write_text('{"step": 3, "text": "done", "state": "ended"}\n', encoding="utf-8")
    return folder


def test_scores_differences_and_a_line_for_each_run(tmp_path: Path) -> None:
    one = run(tmp_path / "one", 3.0, recipe="seed: 0\noptim:\n  clip: null\n  betas: [0.9, 0.95]\n", knn=(40.0, 30.0))
    two = run(tmp_path / "two", 6.0, recipe="seed: 0\noptim:\n  clip: 1.0\n  betas: [0.9, 0.99]\nnew: x <b>\n")
    found = document([one, two], now=NOW)
    assert found.title == "2 runs" and list(found.data["runs"]) == ["one", "two"]
    scores, apart = [part for part in found.parts if isinstance(part, Table)]
    assert scores.head == ("run", "state", "loss", "kNN")
    assert scores.rows == [
        ["one", "ended after 4 steps", "1", "30 (highest 40)"],
        ["two", "ended after 3 steps", "2", ""],
    ]
    assert apart.head == ("field", "one", "two")
    assert apart.rows == [
        ["optim.clip", "-", "1.0"],
        ["optim.betas", "[0.9, 0.95]", "[0.9, 0.99]"],
        ["new", "-", "x <b>"],
    ]
    charts = {part.title: part for part in found.parts if isinstance(part, Chart)}
    assert [(line.name, line.y) for line in charts["Loss"].lines] == [
        ("one", [3.0, 1.5, 1.0]),
        ("two", [6.0, 3.0, 2.0]),
    ]
    assert [line.name for line in charts["kNN"].lines] == ["one"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / "runs" / above / "same", 1.0, recipe="") for above in ("a", "b")]
    found = document(folders, now=NOW)
    assert list(found.data["runs"]) == ["a/same", "b/same"]
    assert Text("Nothing: every field is the same, but for name and output.") in found.parts
    assert list(document([folders[0]] * 2, now=NOW).data["runs"]) == ["same (1)", "same (2)"]


def test_a_run_that_goes_on_is_read_on(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, 1.0, recipe="") for name in ("one", "two")]
    readers = {folder: Curves(folder) for folder in folders}
    document(folders, readers, NOW)
    with open(folders[0] / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 0.5}\n')
    assert document(folders, readers, NOW) == document(folders, now=NOW)
    assert readers[folders[0]].step == 4


def test_damaged_runs_have_a_place(tmp_path: Path) -> None:
    good = run(tmp_path / "good", 1.0, recipe="")
    (bad := tmp_path / "bad").mkdir()
    for name in ("recipe.yaml", "metrics.jsonl", "events.jsonl"):
        (bad / name).write_bytes(b"\xff: [\n")
    table = document([good, bad], now=NOW).parts[0]
    assert isinstance(table, Table) and isinstance(table.rows[1][1], Marked)
