"""The wheel in a fresh environment and an empty folder: nothing is missing, and recipes go by their names."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from every_command import pictures
from package import SOURCES, Environment, build, environment
from support import ROOT

from unlabeled.command import summaries
from unlabeled.recipe.shipped import names

SMALL = (
    *("data.train_size=64", "data.val_size=64", "train.epochs=2", "train.batch_size=32", "run.device=cpu"),
    *("run.workers=0", "optim.warmup_epochs=0", "evaluate=null"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, built: tuple[Path, Path]) -> Environment:
    return environment(tmp_path_factory.mktemp("fresh"), built[0])


def tree(folder: Path) -> set[str]:
    """All files of a folder that belong to the package."""
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(folder)) for file in files if file.name != "tsconfig.json"}


def test_the_wheel_has_every_file_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {f"unlabeled/{name}" for name in tree(ROOT / "ssl" / "unlabeled")}
    assert inside == package | {f"unlabeled/recipes/{name}" for name in tree(ROOT / "recipes")}


def test_the_source_archive_builds_what_the_checkout_builds(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {*SOURCES} - {"ssl", "recipes"} <= inside
    assert {f"recipes/{name}" for name in tree(ROOT / "recipes")} <= inside


def test_nothing_of_the_checkout_is_used(fresh: Environment) -> None:
    said = fresh.run(["python", "-c", "import unlabeled; print(unlabeled.__file__)"]).stdout
    assert said.startswith(str(fresh.python.parents[1]))


@pytest.mark.parametrize("name", ["", *summaries()])
def test_every_help_is_shown(fresh: Environment, name: str) -> None:
    said = fresh.unlabeled(*([name] if name else []), "--help")
    assert said.startswith(f"usage: unlabeled {name}".rstrip())


def test_recipes_are_found(fresh: Environment) -> None:
    listed = fresh.unlabeled("recipes", "list")
    assert all(f"  {file.stem} " in listed or f"  {name} " in listed for name, file in names().items())
    shown = fresh.unlabeled("recipes", "show", "mae_vits16_1gpu")
    assert shown == names()["pretrain/mae_vits16_1gpu"].read_text(encoding="utf-8")
    fresh.unlabeled("recipes", "copy", "mae_shapes", "mine.yaml")
    assert "unlabeled recipes list" in fresh.unlabeled("pretrain", "mae_shape", code=2)
    fresh.unlabeled("pretrain", "mine.yaml", *SMALL, "--dry-run")


def test_the_version_is_said(fresh: Environment, built: tuple[Path, Path]) -> None:
    assert fresh.unlabeled("--version").startswith(f"unlabeled {built[0].name.split('-')[1]} (")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_the_names_of_recipes(fresh: Environment, shell: str) -> None:
    assert "mae_vits16_1gpu" in fresh.unlabeled("completion", shell)


def test_a_recipe_is_written_for_pictures(fresh: Environment) -> None:
    pictures(fresh.folder / "pictures")
    assert "unlabeled pretrain recipe.yaml" in fresh.unlabeled("start", "pictures", "--minutes", "5")
    fresh.unlabeled("pretrain", "recipe.yaml", "--dry-run")


def test_from_pictures_to_a_classifier_by_the_names_of_recipes(fresh: Environment) -> None:
    fresh.unlabeled("pretrain", "mae_shapes", *SMALL)
    run = fresh.folder / "runs" / "mae_shapes"
    assert {"index.html", "export", "metrics.jsonl"} <= {file.name for file in run.iterdir()}
    assert "<script" in (run / "index.html").read_text(encoding="utf-8")
    load = "import timm; print(timm.create_model('local-dir:runs/mae_shapes/export', pretrained=True).num_features)"
    assert fresh.run(["python", "-c", load]).stdout == "96\n"
    words = ("encoder=runs/mae_shapes/export", "task.view.size=32", "task.fraction=1")
    fresh.unlabeled("finetune", "finetune_shapes", *words, *SMALL)
    assert (fresh.folder / "runs" / "finetune_shapes" / "result.json").is_file()
    fresh.unlabeled("embed", "runs/mae_shapes/export", "mae_shapes", "features", "data.train_size=64")
    assert (fresh.folder / "features" / "manifest.json").is_file()
