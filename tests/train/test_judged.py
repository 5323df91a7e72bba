"""Labels that pretraining is judged by: a share held out of its own pictures, or pictures that lie elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import TINY_FINETUNE, TINY_PRETRAIN, launch, metrics

from unlabeled.__main__ import main
from unlabeled.data.opened import Opened
from unlabeled.data.sources.table import Config as Table
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

KNN = "evaluate={knn: {k: 3}, linear: null, crop_pct: 1.0}"
# weights stay as they are drawn, so that one process and two have the very same scores
STILL = ("optim.base_lr=1e-30", "optim.weight_decay=0", "train.epochs=1", "run.page=false", "look=null")
SEEN = "look={examples: 0, queries: 0, map: pca}"


def fill(folder: Path, count: int, first: int = 0) -> None:
    """Noise of two classes, one a little brighter: features tell them apart now and then."""
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        for low, name in enumerate(("dark", "light")):
            file = folder / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(2 * low, 2 * low + 90, (16, 16, 3), dtype=np.uint8)).save(file)


def flatten(folder: Path, count: int, first: int) -> None:
    """Pictures without labels."""
    fill(folder / "classes", count, first)
    for file in (folder / "classes").glob("*/*.png"):
        file.rename(folder / f"{file.parent.name}-{file.name}")
    shutil.rmtree(folder / "classes")


def start(home: Path, output: str, *changes: str, world: int = 1) -> list[int]:
    recipe = home / "recipe.yaml"
    recipe.write_text(TINY_PRETRAIN, encoding="utf-8")
    return launch("pretrain", [str(recipe), f"run.output={home / output}", *changes], world=world)


def judged(export: Path, data: Path, *changes: str) -> float:
    """kNN as `unlabeled evaluate` has it."""
    table = export.parent.parent / "scores.json"
    sets = ["--set", "knn.k=3", *changes]
    options = ["--protocol", "knn", "--crop-pct", "1", "--workers", "0", "--no-baselines", "--json", str(table)]
    assert main(["evaluate", str(export), "--data", str(data), *options, *sets]) == 0
    [row] = json.loads(table.read_text(encoding="utf-8"))["rows"]
    return row["scores"]["knn"]["mean"]


def last(run: Path) -> float:
    return [line["knn"] for line in metrics(run) if "knn" in line][-1]


# ---- a share of its own pictures


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of classes, with a share held out."""
    home = tmp_path_factory.mktemp("split")
    fill(home / "all", 20)
    data = f"data={{name: files, path: {home / 'all'}, split: 0.3}}"
    assert start(home, "run", data, KNN, *STILL) == [0]
    return home


def test_a_run_keeps_its_share_for_tests(split: Path) -> None:
    with (split / "run" / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and {Path(row["path"]) for row in rows} == set((split / "all").glob("*/*.png"))
    assert [sum((row["label"], row["split"]) == (c, "val") for row in rows) for c in ("dark", "light")] == [6, 6]
    plan = dict(json.loads((split / "run" / "plan.json").read_text(encoding="utf-8"))["lines"])
    assert plan["pictures"].startswith("28 from files")
    words = "30 % of every class are val and not learnt from, 12 of 40 pictures (data.split_seed=0)"
    assert plan["split"] == f"{words}; listed in {split / 'run' / 'split.csv'}"
    assert words in (split / "run" / "export" / "README.md").read_text(encoding="utf-8")


def test_fine_tuning_is_scored_on_the_same_pictures(split: Path) -> None:
    recipe = split / "finetune.yaml"
    recipe.write_text(TINY_FINETUNE, encoding="utf-8")
    data = f"data={{name: files, path: {split / 'all'}, split: 0.3}}"
    changes = [f"encoder={split / 'run' / 'export'}", data, f"run.output={split / 'tuned'}", *STILL]
    assert launch("finetune", [str(recipe), *changes]) == [0]
    result = json.loads((split / "tuned" / "result.json").read_text(encoding="utf-8"))
    assert result["pictures"] == 12 and result["protocol"]["data"]["split"] == 0.3
    assert (split / "tuned" / "split.csv").read_bytes() == (split / "run" / "split.csv").read_bytes()


def test_every_command_has_the_same_split(split: Path, tmp_path: Path) -> None:
    run = split / "run"
    listed = Opened(Table(path=str(run / "split.csv"), label="label", split="split", val="val"))
    assert len(listed.train) == 28 and len(listed.val) == 12
    found = [
        judged(run / "export", run),
        judged(run / "export", run / "split.csv"),
        judged(run / "export", split / "all", "data.split=0.3"),
    ]
    assert found == [last(run)] * 3
    said = json.loads((split / "scores.json").read_text(encoding="utf-8"))
    assert said["protocol"]["held_out"] == {"share": 0.3, "seed": 0}
    arguments = [str(run / "export"), str(split / "all"), str(tmp_path / "out"), "data.split=0.3", "--workers", "0"]
    assert main(["embed", *arguments, "--split", "val"]) == 0
    made = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert made["written"] == 12


def test_a_run_does_not_go_on_with_another_split(split: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    shutil.copytree(split, tmp_path / "copy")
    home = tmp_path / "copy"
    before = (home / "run" / "split.csv").read_bytes()
    data = f"data={{name: files, path: {split / 'all'}, split: 0.3}}"
    assert start(home, "run", data, KNN, *STILL) == [0]
    assert (home / "run" / "split.csv").read_bytes() == before
    assert start(home, "run", data, KNN, *STILL, "data.split_seed=1") == [2]
    assert "data.split_seed" in capfd.readouterr().err
    fill(home / "all", 1, first=99)
    assert start(home, "run", data.replace(str(split), str(home)), KNN, *STILL) == [2]
    assert "on 28 pictures, and there are 30 now" in capfd.readouterr().err


# ---- pictures elsewhere


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures without labels, judged by others."""
    home = tmp_path_factory.mktemp("elsewhere")
    flatten(home / "unlabelled", 12, first=500)
    fill(home / "labelled" / "train", 14)
    fill(home / "labelled" / "val", 6, first=200)
    assert start(home, "run", *own(home), *STILL, SEEN) == [0]
    return home


def own(home: Path, labelled: str = "") -> list[str]:
    data = f"data={{name: files, path: {home / 'unlabelled'}, mean: [0.3, 0.3, 0.3], std: [0.2, 0.2, 0.2]}}"
    return [data, KNN, f"evaluate.data={labelled or home / 'labelled'}"]


def test_probes_are_of_the_other_pictures(elsewhere: Path, capfd: pytest.CaptureFixture) -> None:
    run = elsewhere / "run"
    assert judged(run / "export", run) == judged(run / "export", elsewhere / "labelled") == last(run)
    plan = dict(json.loads((run / "plan.json").read_text(encoding="utf-8"))["lines"])
    assert plan["pictures"].startswith("24 from files")
    assert plan["evaluate"].startswith("knn (always the most frequent class: 50.0 %); size ")
    assert plan["evaluate"].endswith("fitted on 28 and tested on 12 pictures of evaluate.data (files)")
    seen = json.loads((run / "look" / "map.json").read_text(encoding="utf-8"))
    assert set(seen["words"]["class"]) == {"dark", "light"}


def test_two_processes_have_the_same_scores_by_a_section_with_a_split(elsewhere: Path) -> None:
    labelled = f"{{name: files, path: {elsewhere / 'labelled' / 'train'}, split: 0.4}}"
    assert start(elsewhere, "one", *own(elsewhere, labelled), *STILL) == [0]
    assert start(elsewhere, "two", *own(elsewhere, labelled), *STILL, world=2) == [0, 0]
    assert last(elsewhere / "one") == last(elsewhere / "two") == judged(elsewhere / "one" / "export", elsewhere / "one")
    tables = [(elsewhere / run / "evaluate_split.csv").read_bytes() for run in ("one", "two")]
    assert tables[0] == tables[1] and tables[0].count(b",val\r\n") == 12


def test_a_run_goes_on_with_the_same_labels_alone(
    elsewhere: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    for name in ("run", "labelled"):
        shutil.copytree(elsewhere / name, tmp_path / name)
    again = [*own(elsewhere, str(tmp_path / "labelled")), *STILL]
    assert start(tmp_path, "run", *again, "run.page=true") == [0]
    said = capfd.readouterr().err
    assert f"next: unlabeled ladder {tmp_path}/run/export {tmp_path}/run " in said
    assert f"\n  page       {tmp_path}/run/index.html\n" in said
    fill(tmp_path / "labelled" / "val", 1, first=999)
    assert start(tmp_path, "run", *again) == [2]
    said = "was evaluated on other pictures than evaluate.data has now"
    assert said in capfd.readouterr().err
    assert start(tmp_path, "run", *again, "evaluate=null") == [0]


def test_the_doctor_compares_with_what_is_tested(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(elsewhere / "unlabelled" / "dark-500.png", elsewhere / "labelled" / "val" / "dark" / "copy.png")
    recipe = str(elsewhere / "recipe.yaml")
    main(["doctor", recipe, "--json", "--seconds", "0.1", *own(elsewhere), *STILL])
    (elsewhere / "labelled" / "val" / "dark" / "copy.png").unlink()
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["pictures"] == 24 and facts["splits"]["val"]["pictures"] == 13
    assert facts["copies"]["overlap"]["exact"]["count"] == 1


def recipe(tmp_path: Path, *changes: str) -> PretrainRecipe:
    (tmp_path / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    return load(PretrainRecipe, tmp_path / "recipe.yaml", changes)


def test_normalisation_follows_the_pictures_that_are_learnt_from(tmp_path: Path) -> None:
    changes = ["data={name: files, path: a, mean: [0.1, 0.2, 0.3], std: [1, 2, 3], value_range: [0, 9]}"]
    found = recipe(tmp_path, *changes, "evaluate.data=b").elsewhere
    expected: dict[str, Any] = {"path": "b", "train": "train", "val": "val", "mean": (0.1, 0.2, 0.3), "std": (1, 2, 3)}
    assert found is not None and {name: getattr(found, name) for name in expected} == expected
    assert getattr(found, "value_range") == (0, 9)  # noqa: B009 - of the kind
    assert recipe(tmp_path, *changes, "evaluate.data={name: files, path: b, mean: [0.1, 0.2, 0.3]}").elsewhere
    with pytest.raises(ValueError, match=r"evaluate\.data\.std is \[1\.0, 1\.0, 1\.0\], and data\.std is \[1\.0"):
        recipe(tmp_path, *changes, "evaluate.data={name: files, path: b, std: [1, 1, 1]}")


@pytest.mark.parametrize("changes", [["evaluate={}"], ["evaluate={data: {name: files, path: /x}}"]])
def test_a_share_is_offered_where_nothing_is_tested_on(
    elsewhere: Path, changes: list[str], capfd: pytest.CaptureFixture
) -> None:
    assert start(elsewhere, "never", own(elsewhere)[0], *changes, "--dry-run") == [2]
    assert "data.split=0.2" in capfd.readouterr().err
