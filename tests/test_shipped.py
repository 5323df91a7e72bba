"""Recipes by name: what comes with the package, what a word means, and the programs under `unlabeled`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import accelerate
import pytest
import timm
import torch
from support import ROOT, TINY_PRETRAIN

import unlabeled
from unlabeled import command
from unlabeled.__main__ import main
from unlabeled.backbone.folder import IMAGENET
from unlabeled.errors import UserError
from unlabeled.launch.given import given, has_splits
from unlabeled.recipe import said, shipped
from unlabeled.recipe.header import header as header_of
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
    assert command.programs() == ["pretrain", "incremental", "finetune"]
    assert list(command.summaries())[:3] == ["pretrain", "incremental", "finetune"]


def test_usage_names_what_was_typed() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "ssl")}
    for script, usage in (
        (["-m", "unlabeled"], "python -m unlabeled pretrain"),
        ([str(ROOT / "pretrain.py")], "pretrain.py"),
    ):
        words = ["pretrain", "--help"] if script[0] == "-m" else ["--help"]
        done = subprocess.run([sys.executable, *script, *words], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: {usage} [-h") and f"{usage} --help SECTION" in done.stdout


def test_without_a_word_it_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "unlabeled recipes list" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "said"), [("pretrian", "Did you mean 'pretrain'?"), ("zzz", "Commands: pretrain, ")])
def test_a_command_that_is_none(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word, "x"])
    assert ended.value.code == 2 and f"{word!r} is no command" in (told := capsys.readouterr().err) and said in told


def test_the_version_is_that_of_the_package_and_of_what_decides_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    told = capsys.readouterr().out
    assert told.startswith(f"unlabeled {unlabeled.__version__} (") and told.count("\n") == 1
    for package in (torch, timm, accelerate):
        assert f"{package.__name__} {metadata.version(package.__name__)}" in told


@pytest.mark.parametrize("name", shipped.names())
def test_the_command_of_a_recipe_starts_it(name: str) -> None:
    text = shipped.names()[name].read_text(encoding="utf-8")
    stage, word = re.findall(r"#   command .*?\bunlabeled (pretrain|finetune|incremental) (\S+)", text)[0]
    assert shipped.find(word, stage) == shipped.names()[name]
    assert stage == ("pretrain" if "\nmethod:" in text else "incremental" if "\ntasks:" in text else "finetune")


def test_recipes_are_listed_by_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.work.recipes.header", header := cache(header_of))  # each is read once
    assert main(["recipes", "list"]) == 0
    everything = capsys.readouterr().out
    for name, file in shipped.names().items():
        row = next(line for line in everything.splitlines() if line.startswith(f"  {shipped.called(file)} "))
        found = header(file)
        assert name and all(part and part in row for part in found)
    assert main(["recipes", "list", "MAE", "1gpu"]) == 0
    chosen = capsys.readouterr().out
    assert "mae_vits16_1gpu" in chosen and "simclr_vits16_1gpu" not in chosen and "mae_cifar10" not in chosen
    assert main(["recipes", "list", "no such thing"]) == 2


def test_a_recipe_is_shown_and_copied_and_nothing_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    text = (RECIPES / "demo" / "mae_shapes.yaml").read_text(encoding="utf-8")
    assert main(["recipes", "show", "mae_shapes"]) == 0
    assert capsys.readouterr().out == text
    Path("folder").mkdir()
    for words, file in (([], "mae_shapes.yaml"), (["mine.yaml"], "mine.yaml"), (["folder"], "folder/mae_shapes.yaml")):
        assert main(["recipes", "copy", "mae_shapes", *words]) == 0
        assert Path(file).read_text(encoding="utf-8") == text
        assert f"unlabeled pretrain {file}" in capsys.readouterr().out
        Path(file).write_text("mine", encoding="utf-8")
        assert main(["recipes", "copy", "mae_shapes", *words]) == 2
        assert Path(file).read_text(encoding="utf-8") == "mine" and "is there already" in capsys.readouterr().err
    assert main(["recipes", "copy", "mae_shapes", "nowhere/x.yaml"]) == 2
    assert "nowhere/x.yaml cannot be written" in capsys.readouterr().err


COMPLETE = """source ./script
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=(); _shtab_unlabeled; echo "${COMPREPLY[@]}"; }
try unlabeled rec
try unlabeled pretrain mae_vits16_1
try unlabeled recipes show finetune_sh
try unlabeled finetune --ext
try unlabeled look --map u
try unlabeled doctor mine
"""


def test_shells_complete_commands_options_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("zsh", "fish", "bash"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "mae_vits16_1gpu" in script and "--fresh" in script and "python -m" not in script
    Path("script").write_text(script, encoding="utf-8")
    Path("mine.yaml").touch()
    found = subprocess.run(["bash", "-c", COMPLETE], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found == ["recipes", "mae_vits16_1gpu", "finetune_shapes", "--extend", "umap", "mine.yaml"]
