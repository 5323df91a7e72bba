"""Several machines: each has its own working folder, home, temporary files and copy of the pictures."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY_PRETRAIN, assert_close_weights, launch, metrics, on_own_node

LOST = 69
MORE = ["train.epochs=1", "method.encoder.drop_path=0.0"]
LAST = 5


def hurried(home: Path) -> None:
    """The same, on a network file system that shows every file at once."""
    from unlabeled import processes

    processes.SEEN_WITHIN = 0.5
    on_own_node(home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes with a copy of the pictures each, of other dates."""
    home = tmp_path_factory.mktemp("nodes")
    recipe = TINY_PRETRAIN.replace(
        "{name: shapes, train_size: 42, val_size: 20, size: 16}", "{name: files, path: pictures, val: null}"
    )
    rng = np.random.default_rng(0)
    for node in range(2):
        folder = home / f"node-{node}"
        (folder / "pictures" / "train").mkdir(parents=True)
        (folder / "tiny.yaml").write_text(recipe, encoding="utf-8")
    for number in range(42):
        name = f"pictures/train/{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(home / "node-0" / name)
        shutil.copyfile(home / "node-0" / name, home / "node-1" / name)
    for node in range(2):
        os.utime(home / f"node-{node}" / "pictures" / "train", (1e9 + node, 1e9 + node))
        os.utime(home / f"node-{node}" / "pictures", (1e9 + node, 1e9 + node))
    return home


def start(
    home: Path, output: str | Path, *more: str, world: int = 2, hook: object = on_own_node, **how: object
) -> list:
    return launch(
        "pretrain", ["tiny.yaml", f"run.output={output}", *MORE, *more], world=world, hook=partial(hook, home), **how
    )


def plan_of(topic: str, said: str) -> str:
    return next((line for line in said.splitlines() if line.split()[:1] == [topic]), "")


def test_two_nodes_learn_what_one_does(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(home, tmp_path / "one", world=1) == [0]
    assert not plan_of("nodes", capsys.readouterr().err)
    killed = {"step": 4, "ranks": [1]}
    assert start(home, tmp_path / "two", "run.timeout=20", kill=killed) == [LOST, -9]
    said = capsys.readouterr().err
    assert "process 0: the connection to another process of this run is lost" in said and "Traceback" not in said
    index = (tmp_path / "two" / "index" / "train.safetensors").read_bytes()
    assert start(home, tmp_path / "two") == [0, 0]
    said = capsys.readouterr().err
    assert "2: " in plan_of("nodes", said) and "(1 process, 1 core)" in plan_of("nodes", said)
    assert "resuming from" in said
    assert (tmp_path / "two" / "index" / "train.safetensors").read_bytes() == index, "the first node's stays"
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == LAST
    assert_close_weights(tmp_path / "one", tmp_path / "two", LAST)
    assert not (home / "node-1" / "runs").exists()


def test_an_output_folder_that_only_one_node_sees(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(home, "runs/own", hook=hurried) == [2, 2]
    said = capsys.readouterr().err
    assert str(home / "node-0" / "runs" / "own") in said and str(home / "node-1" / "runs" / "own") in said
    assert "set run.output to one on a file system that they share" in said and "Traceback" not in said


def test_other_pictures_on_one_node(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = home / "node-1" / "pictures" / "train" / "more.png"
    shutil.copyfile(other.with_name("00.png"), other)
    try:
        assert start(home, tmp_path / "run") == [2, 2]
    finally:
        other.unlink()
    said = capsys.readouterr().err
    assert "process 1 on " in said and "samples was 42 and is 43" in said and "Traceback" not in said
    shutil.move(home / "node-1" / "pictures", home / "node-1" / "moved")
    try:
        assert start(home, tmp_path / "run") == [2, 2]
    finally:
        shutil.move(home / "node-1" / "moved", home / "node-1" / "pictures")
    assert "process 1: " in capsys.readouterr().err


def test_another_recipe_on_one_node(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "node-1" / "tiny.yaml"
    recipe = file.read_text(encoding="utf-8")
    file.write_text(
        recipe.replace("base_lr: 0.03", "base_lr: 0.02").replace("workers: 0", "workers: 1"), encoding="utf-8"
    )
    try:
        assert start(home, tmp_path / "run") == [2, 2]
    finally:
        file.write_text(recipe, encoding="utf-8")
    said = capsys.readouterr().err
    assert "process 1 has another recipe" in said and "optim.base_lr" in said and "run.workers" not in said
