"""Recipes by name: what comes with the package, what a word means, and the programs under `unlabeled`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY_PRETRAIN

from unlabeled import command
from unlabeled.__main__ import main
from unlabeled.backbone.folder import IMAGENET
from unlabeled.errors import UserError
from unlabeled.launch.given import given, has_splits
from unlabeled.recipe import said, shipped
from unlabeled.stages import load_any

RECIPES = ROOT / "recipes"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_has_a_name_of_folder_and_stem() -> None:
    files = {str(file.relative_to(RECIPES).with_suffix("")): file for file in RECIPES.rglob("*.yaml")}
    assert shipped.names() == files and len(files) > 50
    for name, file in files.items():
        assert shipped.find(name) == shipped.find(shipped.called(file), file.parent.name) == file


@pytest.mark.parametrize(
    ("word", "stage", "found"),
    [
        ("mae_vits16_1gpu", "", "pretrain/mae_vits16_1gpu"),
        ("demo/mae_shapes", "pretrain", "demo/mae_shapes"),
        ("vits16_1gpu", "finetune", "finetune/vits16_1gpu"),
        ("mae_vitb16_in1k", "finetune", "finetune/mae_vitb16_in1k"),
        ("mae_vitb16_in1k", "pretrain", "pretrain/mae_vitb16_in1k"),
        ("vits16_1gpu", "pretrain", "finetune/vits16_1gpu"),  # the program says that it is not its own
    ],
)
def test_a_name_is_found_anywhere(word: str, stage: str, found: str) -> None:
    assert shipped.find(word, stage) == RECIPES / f"{found}.yaml"


@pytest.mark.parametrize("word", ["mae_shapes.yaml", "nowhere/mae_shapes", "./mae_shapes", "/demo/mae_shapes", "x.yml"])
def test_what_can_only_be_a_file_is_one(word: str) -> None:
    assert shipped.find(word) == Path(word)


def test_a_file_goes_before_a_recipe_of_its_name_and_a_folder_does_not() -> None:
    Path("mae_shapes").mkdir()
    assert shipped.find("mae_shapes") == RECIPES / "demo" / "mae_shapes.yaml"
    Path("mae_shapes").rmdir()
    Path("mae_shapes").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert shipped.find("mae_shapes") == Path("mae_shapes") and said("mae_shapes")["name"] == "tiny"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("mae_vitb16_in1k", "Name one of them: finetune/mae_vitb16_in1k, pretrain/mae_vitb16_in1k"),
        ("mae_vits_1gpu", "no such recipe. Did you mean 'mae_vits16_1gpu'? `unlabeled recipes list`"),
        ("pretrain/mae_vits", "no such recipe. Did you mean 'pretrain/mae_vits16_1gpu'?"),
        ("zzz", "zzz: no such recipe. `unlabeled recipes list` shows all"),
        ("recipes/demo/mae_shapes.yaml", "A recipe of that name comes with unlabeled: write mae_shapes"),
    ],
)
def test_what_is_no_recipe_is_said(word: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        load_any(word)
    assert expected in str(raised.value)


def test_pictures_may_be_those_of_a_named_recipe(tmp_path: Path) -> None:
    assert given("mae_shapes", load_any, IMAGENET, {}, ["data.val_size=7"]).name == "shapes"
    assert has_splits("mae_shapes")
    Path("mae_shapes").mkdir()  # pictures of the user's own go before
    assert given("mae_shapes", load_any, IMAGENET, {}).path == "mae_shapes" and not has_splits("mae_shapes")


def test_the_programs_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.train_size=64", "data.val_size=32", "evaluate=null", "train.batch_size=32", "--dry-run"]
    assert main(["pretrain", "mae_shapes", *small]) == 0
    assert "mae_shapes (pretrain)" in capsys.readouterr().err
    assert main(["finetune", "mae_shapes", *small]) == 2
    assert "has `method`, so it is a recipe for `unlabeled pretrain`" in capsys.readouterr().err
    assert main(["pretrain", "mae_shape"]) == 2
    assert "Did you mean 'mae_shapes'?" in capsys.readouterr().err


def test_every_stage_is_a_program() -> None:
    assert command.programs() == ["pretrain", "finetune"]
    assert list(command.summaries())[:2] == ["pretrain", "finetune"]


def test_usage_names_what_was_typed() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "ssl")}
    for typed, shown in ((["-m", "unlabeled"], "python -m unlabeled"), (["-m", "unlabeled", "watch"], "watch")):
        done = subprocess.run([sys.executable, *typed, "--help"], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: python -m unlabeled ") and shown in done.stdout
