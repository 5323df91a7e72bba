"""Several runs as one table: means over seeds by arithmetic, and what must not stand beside each other."""

from __future__ import annotations

import copy
import json
import re
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from unlabeled.__main__ import main
from unlabeled.recipe.free import is_free
from unlabeled.report.intervals import student
from unlabeled.report.several import comparison, grouped, read_run
from unlabeled.report.visuals import Chart
from unlabeled.stages.finetune import FinetuneRecipe

RESULT: dict[str, Any] = {
    "pictures": 1000,
    "accuracy": 50.0,
    "interval": [46.9, 53.1],
    "top5": 90.0,
    "balanced_accuracy": 40.0,
    "groups": {"many": {"classes": 3, "accuracy": 60.0}, "few": {"classes": 2, "accuracy": 10.0}},
    "nll": 1.25,
    "ece": 5.0,
    "seeds": {"run": 0, "labels": 0},
    "cost": {"cpu_s": 100.0},
    "protocol": {
        "name": "finetune",
        "version": "1",
        "encoder": "runs/mae/export",
        "task": {"mode": "full", "fraction_seed": 0, "sweep": {"rates": [1.0]}},
        "optim": {"name": "adamw", "base_lr": 0.001},
        "train": {"epochs": 2},
        "watch": None,
        "data": {"name": "files", "path": "/here"},
        "labelled_pictures": 500,
        "fingerprints": {"encoder": "e0", "train": "t0", "val": "v0"},
    },
}


def write(folder: Path, **changes: Any) -> str:
    """A run whose result is `RESULT` but for `a__b=value`; returns its folder."""
    result = copy.deepcopy(RESULT)
    for path, value in changes.items():
        *place, last = path.split("__")
        inner = result
        for name in place:
            inner = inner[name]
        inner[last] = value
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return str(folder)


def seeded(folder: Path, seed: int, **changes: Any) -> str:
    """A repetition: other seeds, other labels, another place of the pictures."""
    labels = {"protocol__task__fraction_seed": seed, "protocol__fingerprints__train": f"t{seed}"}
    where = {"protocol__data__path": f"/elsewhere{seed}"}
    return write(folder, **labels, **where, seeds={"run": seed, "labels": seed}, **changes)


def test_seeds_become_a_mean_with_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = [50.0, 52.0, 57.0]
    runs = [seeded(tmp_path / f"full{s}", s, accuracy=a, cost__cpu_s=90 + 10 * s) for s, a in enumerate(accuracies)]
    other = write(tmp_path / "linear", protocol__task__mode="linear", accuracy=41.0, interval=[38.0, 44.0], top5=None)
    files = [tmp_path / "new" / f"runs.{ending}" for ending in ("json", "md", "html")]
    options = zip(("--json", "--markdown", "--html"), map(str, files), strict=True)
    assert main(["report", *runs, other, *(word for pair in options for word in pair)]) == 0
    deviation = statistics.stdev(accuracies)
    half = 4.302653 * deviation / 3**0.5  # Student's t of 95 %, two degrees of freedom, as in any table of it
    first, second = json.loads(files[0].read_text(encoding="utf-8"))["rows"]
    accuracy = first["scores"]["accuracy"]
    assert accuracy["values"] == accuracies and accuracy["mean"] == 53.0
    assert accuracy["std"] == pytest.approx(deviation)
    assert accuracy["interval"] == pytest.approx([53 - half, 53 + half], abs=1e-4)
    assert second["scores"]["accuracy"] == {"mean": 41.0, "std": None, "interval": None, "values": [41.0]}
    assert first["scores"]["few"]["values"] == [10.0] * 3 and "top5" not in second["scores"]
    text = capsys.readouterr().out
    assert text == files[1].read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    columns = ["accuracy", "top-5", "balanced accuracy", "many", "few", "NLL, nats", "ECE", "CPU s"]
    assert rows[0] == ["", "runs", "seeds", *columns]
    assert rows[2][:2] == ["1", ", ".join(runs)]
    low, high = 53 - half, 53 + half
    same = ["90.00 ± 0.00", "40.00 ± 0.00", "60.00 ± 0.00", "10.00 ± 0.00", "1.2500 ± 0.0000", "5.00 ± 0.00"]
    assert rows[2][2:] == ["0, 1, 2", f"53.00 ± {deviation:.2f} [{low:.2f}, {high:.2f}]", *same, "100"]
    assert rows[3][2:5] == ["0", "41.00 [38.00, 44.00]", "-"]
    assert rows[-3] == ["", "1", "2"]
    assert "With their 95 % intervals." in files[2].read_text(encoding="utf-8")
    assert rows[-1] == ["task.strategy.name", "full", "linear"]  # the only setting that sets them apart


def test_a_chart_has_the_scores_of_every_row_with_their_intervals(tmp_path: Path) -> None:
    accuracies = [50.0, 52.0, 57.0]
    paths = [seeded(tmp_path / f"full{s}", s, accuracy=a) for s, a in enumerate(accuracies)]
    paths.append(
        write(tmp_path / "linear", protocol__task__mode="linear", accuracy=41.0, interval=[38.0, 44.0], top5=None)
    )
    chart = comparison(grouped([read_run(Path(path), partial(is_free, FinetuneRecipe)) for path in paths])).parts[-1]
    assert isinstance(chart, Chart) and chart.names == ["1", "2"]
    lines = {line.name: line for line in chart.lines}
    accuracy, half = lines["accuracy"], student(accuracies)
    assert accuracy.y == [53.0, 41.0] and [round(x) for x in accuracy.x] == [0, 1]
    assert list(accuracy.low) == pytest.approx([53 - half, 38]) and list(accuracy.high) == pytest.approx(
        [53 + half, 44]
    )
    assert len(lines["top-5"].x) == 1 and lines["balanced accuracy"].low[1] is None and "NLL, nats" not in lines
    assert len({line.x[0] for line in chart.lines}) == len(chart.lines)  # none hides another


def test_other_weights_or_labels_are_no_repetition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        seeded(tmp_path / "a", 0),
        seeded(tmp_path / "b", 1, protocol__fingerprints__encoder="e1"),
        seeded(tmp_path / "c", 2, protocol__labelled_pictures=250),
    ]
    assert main(["report", *runs]) == 0
    text = capsys.readouterr().out
    apart = [line.split("|")[1].strip() for line in text.split("What sets them apart")[1].splitlines()[4:]]
    assert apart == ["labelled pictures", "encoder's weights"]


def test_other_weights_are_a_repetition_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [{"protocol__encoder": f"runs/mae_{s}", "protocol__fingerprints__encoder": f"e{s}"} for s in range(2)]
    runs = [write(tmp_path / f"mae_{s}", **told, accuracy=50.0 + s) for s, told in enumerate(weights)]
    assert main(["report", *runs, "--over-encoders", "--json", str(tmp_path / "it.json")]) == 0
    (row,) = json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))["rows"]
    assert row["scores"]["accuracy"]["values"] == [50.0, 51.0] and row["settings"]["task.strategy.name"] == "full"
    assert "encoder" not in row["settings"] and "What sets them apart" not in capsys.readouterr().out
    again = write(tmp_path / "again", **weights[1])
    assert main(["report", *runs, again, "--over-encoders"]) == 2
    assert "one run twice is no repetition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol__fingerprints__val": "v1"}, r"scored on different pictures \(fingerprints v0 and v1\)"),
        ({"protocol__version": "2"}, "was scored by protocol finetune 1, .* by finetune 2"),
        ({}, r"equal settings and seeds \(run 0 and labels 0\): one run twice is no repetition"),
        ({"protocol__fingerprints__train": "t1"}, "learnt from different pictures"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert main(["report", write(tmp_path / "a"), write(tmp_path / "b", **changes)]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_run_without_a_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} has no result.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert f"{tmp_path / 'gone'} does not exist" in capsys.readouterr().err
    for text in ("{", "[]", '{"protocol": {}}'):
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
        assert main(["report", str(tmp_path)]) == 2
        assert "is no result of `unlabeled finetune`" in capsys.readouterr().err
