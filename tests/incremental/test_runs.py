"""Whole incremental runs: one task is ordinary fine-tuning, a killed run goes on to the same bits, one process is N."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import launch

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.incremental.recipe import Tasks
from unlabeled.incremental.strategy import STRATEGIES
from unlabeled.incremental.walk import seed_of

RECIPE = """
name: tiny
seed: 3
encoder: {encoder}
data: {{name: shapes, train_size: 100, val_size: 60, size: 16}}
task: {{strategy: {{name: full}}, pool: mean, view: {{size: 16}}, crop_pct: 1.0}}
optim: {{name: adamw, base_lr: 0.03, warmup_epochs: 0.5}}
train: {{epochs: 2, batch_size: 6}}
run: {{device: cpu, workers: 0, log_every: 1, checkpoint_every: 3, keep_last: 100, page: false, threads: 1}}
look: null
"""
TASKS = "tasks: {init: 4, step: 3, strategy: {name: lwf}}\n"
NAMES = STRATEGIES.names()
WITH_MEMORY = ("tasks.memory.total=20",)


def needs(name: str) -> tuple[str, ...]:
    """The fields that a strategy's tiny run needs beside its name."""
    kind = STRATEGIES.kind(name)
    short = {"der": ("tasks.strategy.balanced_epochs=1",), "podnet": ("tasks.strategy.balanced_epochs=1",)}
    more = ("tasks.strategy.proxies=2",) if name == "podnet" else ("tasks.strategy.dim=40",) if name == "ranpac" else ()
    memory = WITH_MEMORY if kind.remembers else ()  # type: ignore[attr-defined]
    return (f"tasks.strategy.name={name}", *memory, *short.get(name, ()), *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("incremental")
    torch.manual_seed(0)
    tiny = {"patch_size": 4, "width": 16, "depth": 4, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    prepared = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0, pool="mean", size=(16, 16))
    export_encoder(home / "export", encoder, prepared, "", {})
    text = RECIPE.format(encoder=home / "export")
    (home / "plain.yaml").write_text(text, encoding="utf-8")
    (home / "tiny.yaml").write_text(text + TASKS, encoding="utf-8")
    return home


def run(home: Path, name: str, *fields: str, **how: Any) -> Path:
    """The folder of a run that ended."""
    arguments = [str(home / "tiny.yaml"), f"run.output={home / name}", *fields]
    assert launch("incremental", arguments, **how) == [0] * how.get("world", 1)
    return home / name


def left(output: Path, task: int) -> dict[str, torch.Tensor]:
    """What a task has left for the next."""
    return load_file(output / f"task-{task:02d}" / "passed.safetensors")


def bits(output: Path) -> list[bytes]:
    """What every task has left, byte by byte."""
    return [file.read_bytes() for file in sorted(output.glob("task-*/passed.safetensors"))]


def result(output: Path) -> Any:
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


def test_one_task_is_ordinary_fine_tuning(home: Path) -> None:
    plain = home / "plain"
    assert launch("finetune", [str(home / "plain.yaml"), f"run.output={plain}"]) == [0]
    classes = result(plain)["classes"]
    one = run(home, "one", "tasks.init=null", f"tasks.order={json.dumps(list(classes.values()))}")
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (one / "task-00", plain))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result(one)["measures"]["lwf"]["last"] == pytest.approx(result(plain)["accuracy"])


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    return run(home, "done", "tasks.init=3", "tasks.step=4", *needs("icarl"))


def test_a_killed_run_goes_on_to_the_same_bits(home: Path, done: Path) -> None:
    """In the second task after a checkpoint, in it again, and after its last step."""
    arguments = [
        str(home / "tiny.yaml"),
        f"run.output={home / 'killed'}",
        "tasks.init=3",
        "tasks.step=4",
        *needs("icarl"),
    ]
    for step in (14, 15):  # the first task has 10 steps
        assert launch("incremental", arguments, kill={"step": step}) == [-9]
    assert launch("incremental", arguments) == [0]
    assert len(bits(done)) == 3 and bits(home / "killed") == bits(done)
    for name in ("task.json", "passed.safetensors", "result.json"):
        (home / "killed" / "task-02" / name).unlink()
    assert launch("incremental", arguments) == [0]
    assert bits(home / "killed") == bits(done)
    assert result(home / "killed")["accuracy"] == result(done)["accuracy"]


@pytest.mark.parametrize("name", NAMES)
def test_one_process_is_two(home: Path, name: str) -> None:
    # steps in proportion to gradients: AdamW would make the smallest ones, which are rounding, as large as any
    fields = ("train.epochs=1", "optim={name: sgd, base_lr: 1.0}", *needs(name))
    one, two = run(home, f"{name}-one", *fields), run(home, f"{name}-two", *fields, world=2)
    assert [line["learnt_from"] for line in result(one)["tasks"]] == [
        line["learnt_from"] for line in result(two)["tasks"]
    ]
    for task in range(3):
        ours, theirs = left(one, task), left(two, task)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(
                ours[key], theirs[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_memory_is_shared_among_the_classes_and_of_training_images(home: Path, done: Path) -> None:
    labels = {}
    for task, known in enumerate((3, 7, 10)):
        memory = left(done, task)["memory/"].tolist()
        assert len(memory) == len(set(memory)) == 20 // known * known
        assert max(memory) < 100
        if task:
            before = left(done, task - 1)["memory/"].tolist()
            old = [
                before[k * size : k * size + 20 // known]
                for size in [len(before) // labels["known"]]
                for k in range(labels["known"])
            ]
            assert memory[: len(old) * (20 // known)] == [
                number for row in old for number in row
            ]  # the first of each stay
        labels["known"] = known


@pytest.mark.parametrize("name", ["ncm", "ranpac"])
def test_tasks_do_not_change_what_closed_forms_find(home: Path, name: str) -> None:
    fixed = ("tasks.strategy.ridge=1.0",) if name == "ranpac" else ()
    tasks, whole = (
        run(home, f"{name}-tasks", *needs(name), *fixed),
        run(home, f"{name}-all", *needs(name), *fixed, "tasks.init=null"),
    )
    assert result(tasks)["measures"][name]["last"] == pytest.approx(result(whole)["measures"][name]["last"])


def test_bounds_are_plain_fine_tuning_and_all_classes_at_once(home: Path) -> None:
    bounded = run(home, "bounded", "tasks.bounds=true", "train.epochs=1")
    plain = run(home, "weightless", "train.epochs=1", "tasks.strategy.weight=0")
    assert set(result(bounded)["measures"]) == {"lwf", "finetune", "joint"}
    assert bits(bounded / "finetune") == bits(plain) != bits(bounded)
    assert len(bits(bounded / "joint")) == 1
    for name in ("index.html", "result.md", "curve.png", "matrix.png"):
        assert (bounded / name).stat().st_size > 1000 or name == "result.md"


def test_the_seed_of_the_first_task_is_the_recipes() -> None:
    assert seed_of(7, 0) == 7
    assert len({seed_of(7, task) for task in range(20)}) == 20


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["tasks.init=11"], "the first task has 11 classes, the data 10"),
        (["tasks.order=[circle, moon]"], "tasks.order names"),
        (["tasks.strategy.name=icarl"], "needs images of earlier tasks"),
        (["tasks.memory.total=5", "tasks.strategy.name=icarl"], "less than one image of each"),
        (["task.label_smoothing=0.1"], "task.label_smoothing changes the loss"),
        (["task.unlabelled={}"], "task.unlabelled changes the loss"),
        (["task.strategy.name=linear"], "has no head that grows"),
        (["task.name=sweep"], "need task.name=classify"),
        (["watch={every: 2}"], "leave it out"),
        (["--extend", "1"], "depend on those before"),
    ],
)
def test_what_does_not_fit_is_said(
    home: Path, fields: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("incremental", [str(home / "tiny.yaml"), f"run.output={home / 'wrong'}", *fields]) == [2]
    found = capsys.readouterr().err
    assert said in " ".join(found.split()) and "Traceback" not in found


def test_a_folder_of_another_run_is_refused(home: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(home / "tiny.yaml"), f"run.output={done}", "tasks.init=4", "tasks.step=4", *needs("icarl")]
    assert launch("incremental", arguments) == [2]
    assert "holds an incremental run of another recipe" in " ".join(capsys.readouterr().err.split())
    assert Tasks.model_fields["bounds"].metadata  # the bounds may be asked for later
