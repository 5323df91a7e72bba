"""The work of a step is what arithmetic says; a forecast is about what steps really take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import TINY_PRETRAIN
from torch import nn

from unlabeled.data.batch.batch import Batch
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch import forecast as module
from unlabeled.launch.forecast import Forecast, Work, count_work, forecast, in_words, per_picture
from unlabeled.launch.plan import on_meta
from unlabeled.launch.program import main
from unlabeled.pretrain.method import Method, Output, Progress
from unlabeled.recipe import parse
from unlabeled.stages.pretrain import STAGE, PretrainRecipe

CPU = torch.device("cpu")


class Perceptron(Method):
    """Two layers on pixels, the first of which learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(48, 10).requires_grad_(False)
        self.second = nn.Linear(10, 5)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        return Output(self.second(self.first(batch.views[0].flat()[0].flatten(1))).sum(), {})


def test_work_against_arithmetic() -> None:
    work = count_work(on_meta(Perceptron), (View(size=4, count=2),), 1, 100, 3)
    # of two crops: forward through both layers; backward only to the weights of the second
    forward, backward = 2 * (48 * 10 + 10 * 5), 2 * 10 * 5
    assert work.flops == 2 * (forward + backward)
    assert 5 < work.calls < 60


def test_seconds_of_a_picture() -> None:
    work = Work(flops=6e9, calls=1000)
    assert per_picture(work, 10, 2e9, CPU) == pytest.approx(3 + 1000 * module.CALL / 10)
    # a GPU waits for the longer one
    assert per_picture(work, 10, 2e9, torch.device("cuda")) == pytest.approx(3)
    assert per_picture(work, 1, 1e15, torch.device("cuda")) == pytest.approx(1000 * module.CALL)


@pytest.mark.parametrize(
    ("workers", "cores", "together"),
    [
        (0, 8, 1 / (0.5 + 0.25)),  # in turn
        (1, 8, 1 / 0.5),  # the loader
        (4, 8, 1 / 0.25),  # the model
        (4, 1, 1 / (0.5 + 0.25)),  # cores
    ],
)
def test_who_is_waited_for(workers: int, cores: int, together: float, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(PretrainRecipe, TINY_PRETRAIN, [f"run.workers={workers}", "run.threads=1"])
    job = STAGE.job(recipe, Opened(recipe.data))
    monkeypatch.setattr(module, "measured_flops", lambda *_: 1.0)
    monkeypatch.setattr(module, "per_picture", lambda *_: 0.15)
    monkeypatch.setattr(module, "_seconds_per_picture", lambda *_: (0.5, 0.1))
    monkeypatch.setattr(module, "cores", lambda: cores)
    found = forecast(job, on_meta(job.build), 1, CPU)
    assert found.together == pytest.approx(together)
    # 3 epochs of 5 steps of 8 pictures
    assert found.seconds == pytest.approx(15 * 8 / together)
    bound = "loader" if workers < 2 and found.loader < found.model else "model"
    assert f"bound by the {bound}" in in_words(found) and "half or twice" in in_words(found)


def test_the_plan_says_how_long_and_a_run_does_not_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    (tmp_path / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "recipe.yaml"), f"run.output={tmp_path}/run"]
    before = torch.get_num_threads()
    assert main("pretrain", [*arguments, "--dry-run"]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  time ")]
    assert "about" in line and "images/s" in line
    assert torch.get_num_threads() == before


def test_a_plan_goes_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(PretrainRecipe, TINY_PRETRAIN)
    dataset = STAGE.job(recipe, Opened(recipe.data)).dataset
    with pytest.raises(UserError, match="no network of timm's"):
        module._part(Perceptron(), dataset)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("the GPU is full")

    monkeypatch.setattr(module, "measured_flops", full)
    (tmp_path / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "recipe.yaml"), f"run.output={tmp_path}/run", "--dry-run"]
    assert main("pretrain", arguments) == 0
    assert "time       not known: the GPU is full" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["resnet10t", "beit_base_patch16_224"])
def test_networks_of_every_family_are_measured(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setitem(module.MOMENT, "cpu", 1e6)
    method, sizes = "simmim, view: {size: 32, mask: {name: random}}", ", width: 24, depth: 1, positions: relative"
    if model.startswith("resnet"):
        method, sizes = "simclr, view: {size: 32, count: 2}", ""
    change = f"method={{name: {method}, encoder: {{model: {model}{sizes}}}}}"
    recipe = parse(PretrainRecipe, TINY_PRETRAIN, [change, "data.size=32"])
    job = STAGE.job(recipe, Opened(recipe.data))
    assert module.measured_flops(on_meta(job.build), job.dataset, CPU, "no") > 1e5


@pytest.mark.parametrize(("pace", "said"), [(2.954, "2.95"), (99.6, "99.6"), (1034.4, "1,034"), (123456.7, "123,457")])
def test_no_pace_is_said_in_powers_of_ten(pace: float, said: str) -> None:
    assert f": {said} images/s, bound by the model" in in_words(Forecast(pace, 2 * pace, pace, 60.0))
