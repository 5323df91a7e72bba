"""Runs from Python are those of the commands, bit for bit, and leave the process as it was."""

from __future__ import annotations

import inspect
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from ruamel.yaml import YAML
from support import SHOWN_FINETUNE, SHOWN_PRETRAIN, checkpoint_bytes

import unlabeled
from unlabeled.__main__ import main
from unlabeled.interface.changes import of_data
from unlabeled.recipe.shipped import find
from unlabeled.stages.pretrain import STAGE as PRETRAIN
from unlabeled.train.engine import Engine

PLAIN: dict[str, Any] = {"look": None, "run.page": False, "run.keep_last": 1}
STEPS = 15
TINY, TINY_TUNED = (YAML(typ="safe").load(text) for text in (SHOWN_PRETRAIN, SHOWN_FINETUNE))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM)


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something after a step of training."""
    update = Engine._update

    def then(engine: Engine, *arguments: Any) -> None:
        update(engine, *arguments)
        if engine.step == number:
            act()

    Engine._update = then  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine._update = update  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "tiny.yaml").write_text(SHOWN_PRETRAIN, encoding="utf-8")
    changes = ["look=null", "run.page=false", "run.keep_last=1", f"run.output={folder / 'run'}"]
    assert main(["pretrain", str(folder / "tiny.yaml"), *changes]) == 0
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> unlabeled.Run:
    """A run with pictures, two evaluations and a page."""
    folder, evaluate = tmp_path_factory.mktemp("scored"), {"every": 8, "linear": {"epochs": 2}}
    changes = {"evaluate": evaluate, "run.page": True}
    return unlabeled.pretrain(TINY, output=folder / "run", overrides=changes)


def assert_same(run: unlabeled.Run, typed: Path) -> None:
    assert checkpoint_bytes(run.folder, STEPS) == checkpoint_bytes(typed / "run", STEPS) != {}
    names = ("model.safetensors", "heads.safetensors", "config.json")
    assert all((run.export / name).read_bytes() == (typed / "run/export" / name).read_bytes() for name in names)


def test_a_run_is_that_of_the_command(typed: Path, tmp_path: Path) -> None:
    run = unlabeled.pretrain(typed / "tiny.yaml", output=tmp_path / "run", overrides=PLAIN)
    assert_same(run, typed)
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    assert "ended after 15 steps" in repr(run) and run.load(device="cpu").encoder.width == 16
    (run.export / "config.json").unlink()
    again = unlabeled.pretrain(TINY, output=tmp_path / "run", overrides=[f"{k}={v}" for k, v in LISTED.items()])
    assert_same(again, typed)  # nothing is trained, the export is written again


LISTED = {"look": "null", "run.page": "false", "run.keep_last": "1"}


@pytest.mark.parametrize("step", [3, 10])
def test_a_stopped_run_goes_on(typed: Path, tmp_path: Path, step: int) -> None:
    with at_step(step, lambda: signal.raise_signal(signal.SIGINT)):  # the next one is the last
        with pytest.raises(unlabeled.Stopped, match=f"stopped by SIGINT at step {step + 2}; .*the same call goes on"):
            unlabeled.pretrain(TINY, output=tmp_path / "run", overrides=PLAIN)
    assert not (tmp_path / "run/export").exists()
    assert issubclass(unlabeled.Stopped, KeyboardInterrupt)
    assert_same(unlabeled.pretrain(TINY, output=tmp_path / "run", overrides=PLAIN), typed)


def test_it_runs_in_a_thread_and_alone(typed: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(unlabeled.UserError, match="another run goes on in this process") as raised:
            unlabeled.pretrain(TINY, output=tmp_path / "other", overrides=PLAIN)
        refused.append(str(raised.value))

    runs: list[unlabeled.Run] = []
    changes = {**PLAIN, "run.workers": 1}
    with at_step(3, second):
        work = threading.Thread(
            target=lambda: runs.append(unlabeled.pretrain(TINY, output=tmp_path / "run", overrides=changes))
        )
        work.start()
        work.join(100)
    assert_same(runs[0], typed)
    assert refused and not (tmp_path / "other").exists()


def test_the_process_stays_as_it_was(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    random_state, shared = random.getstate(), dict(AcceleratorState._shared_state)
    one_step = {"data.train_size": 8, "optim.warmup_epochs": 0, "train.epochs": 1}
    short = {**PLAIN, **one_step, "run.workers": 1, "run.threads": threads + 1}
    for number, precision in enumerate(("bf16", "no")):  # Accelerate alone refuses a second one
        changes = {**short, "train.precision": precision}
        assert unlabeled.pretrain(TINY, output=tmp_path / f"run{number}", overrides=changes).metrics
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert torch.equal(torch.get_rng_state(), drawn) and torch.get_num_threads() == threads
    assert random.getstate() == random_state and dict(AcceleratorState._shared_state) == shared


def test_it_draws_itself(scored: unlabeled.Run) -> None:
    html = scored._repr_html_()
    assert html.count("<polyline") == 3 and "<script" not in html and len(html) < 200_000
    assert "tiny (pretrain)" in html and "Linear probe" in html and "data:image/png" in html
    assert scored.page.is_file() and set(scored.scores) == {"knn", "linear"}


def test_fine_tuning_and_scores_follow(scored: unlabeled.Run, tmp_path: Path) -> None:
    tuned = unlabeled.finetune(TINY_TUNED, encoder=scored, output=tmp_path / "tuned", overrides=PLAIN)
    assert tuned.result["protocol"]["encoder"] == str(scored.export) and "<table" in tuned._repr_html_()
    assert len(tuned.load(device="cpu").classes) == 10
    settings = {"knn.k": [3], "linear.epochs": 2}
    scores = unlabeled.evaluate([scored, scored.load()], data=scored.folder, settings=settings, workers=0)
    file = tmp_path / "scores.json"
    told = ["--set", "knn.k=[3]", "linear.epochs=2", "--workers", "0", "--no-baselines", "--json", str(file)]
    assert main(["evaluate", str(scored.export), "--data", str(scored.folder), *told]) == 0
    typed = YAML(typ="safe").load(file.read_text(encoding="utf-8"))["rows"][0]["scores"]
    assert scores.scores[str(scored.export)] == {name: one["mean"] for name, one in typed.items()}
    assert "kNN" in scores._repr_html_() and "knn" in repr(scores)
    assert "<html" in scores.write(tmp_path / "page.html").read_text(encoding="utf-8")


def test_baselines_are_scored_where_asked_for(scored: unlabeled.Run) -> None:
    found = unlabeled.evaluate(
        scored, data=scored.folder, protocols=["knn"], settings=["knn.k=[3]"], baselines=True, workers=0, device="cpu"
    )
    assert [row.name.split()[0] for row in found.rows[1:]] == ["raw", "untrained", "most"] and len(found.verdicts) == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a field": ({"recipe": {**TINY, "metod": 1}}, r"recipe:\d+ +metod: unknown field. Did you mean 'method'"),
    "a change": ({"overrides": {"train.epoch": 3}}, "train.epoch: unknown field"),
    "no recipe": ({"recipe": "mae_shape"}, "no such recipe. Did you mean 'mae_shapes'"),
    "no file": ({"recipe": "nowhere.yaml"}, "nowhere.yaml: no such recipe"),
    "no folder": ({"data": "/nowhere"}, "'/nowhere' does not exist"),
    "no data": ({"data": 3}, "data is a int; expected a folder"),
    "another stage": ({"recipe": TINY_TUNED}, "recipe has `encoder`, so it is a recipe for `unlabeled finetune`"),
    "changes as text": ({"overrides": "train.epochs=3"}, r"expected a dictionary or a list, such as \['train"),
    "both": ({"fresh": True, "extend": 1.0}, "choose one"),
}


@pytest.mark.parametrize("what", WRONG)
def test_mistakes_are_named(tmp_path: Path, what: str) -> None:
    changed, said = WRONG[what]
    arguments = {"recipe": TINY, "output": tmp_path / "run", **changed}
    with pytest.raises(unlabeled.UserError, match=said):
        unlabeled.pretrain(arguments.pop("recipe"), **arguments)


def test_another_recipe_is_refused_and_starts_over(scored: unlabeled.Run, typed: Path, tmp_path: Path) -> None:
    run = unlabeled.pretrain(TINY, output=tmp_path / "run", overrides={**PLAIN, "train.epochs": 1})
    assert len(run.metrics) == STEPS / 3
    with pytest.raises(unlabeled.UserError, match="start over with fresh=True"):
        unlabeled.pretrain(TINY, output=tmp_path / "run", overrides={**PLAIN, "seed": 1, "train.epochs": 1})
    assert_same(unlabeled.pretrain(TINY, output=tmp_path / "run", overrides=PLAIN, fresh=True), typed)


def test_functions_that_are_packages() -> None:
    from unlabeled.evaluate import evaluation
    from unlabeled.pretrain.method import PretrainMethod

    assert list(inspect.signature(unlabeled.pretrain).parameters)[:2] == ["recipe", "data"]
    assert "protocols" in inspect.signature(unlabeled.evaluate).parameters
    assert unlabeled.pretrain.method.PretrainMethod is PretrainMethod  # type: ignore[attr-defined]
    assert unlabeled.evaluate.evaluation is evaluation  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [[(Image.new("RGB", (8, 8)), 0)] * 4, {"train": [(Image.new("RGB", (8, 8)), 0)] * 4}])
def test_recipes_of_folders_take_data_sets(data: Any) -> None:
    recipe, _ = PRETRAIN.load(find("photos_cpu"), of_data(data))
    assert recipe.data.name == "dataset" and recipe.data.model_dump()["train"] == {}
