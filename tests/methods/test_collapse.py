"""Runs made to collapse on purpose say so, once, with the field to turn; healthy ones say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from collapsed import FEWER, LONG, PROTOTYPES, says_it_is_too_fast, shrunk, warnings
from support import metrics

from unlabeled.backbone.encoder import Encoder
from unlabeled.nn.heads import DistillHead
from unlabeled.pretrain.method import METHODS
from unlabeled.pretrain.methods import dino

# with few pictures and a sharp temperature, similarities at random cost more than ln N for longer than this
CALM = {"simclr": ["method.temperature=0.5"]}


@pytest.mark.parametrize("name", METHODS.names())
def test_a_healthy_run_hears_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings(tmp_path, capsys, shrunk(name, *FEWER, *CALM.get(name, []))) == []
    last = metrics(tmp_path)[-1]
    assert last["effective_rank"] > 2 and last["feature_std"] > 0.15


@pytest.mark.parametrize("name", ["mae", "simclr"])  # the others in tests/installed
def test_a_learning_rate_a_hundred_times_too_high(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says_it_is_too_fast(name, tmp_path, capsys, *FEWER)


def test_no_centring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharp = ["method.teacher_temperature=0.02", "method.teacher_temperature_start=0.02"]
    lines = warnings(tmp_path, capsys, shrunk("dino", *FEWER, "method.centre_momentum=0.99999", *sharp))
    said = [line for line in lines if "the same one or two prototypes" in line]
    assert len(said) == 1 and "Lower method.centre_momentum from 0.99999" in said[0]


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_a_teacher_temperature_too_high(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = ["method.teacher_temperature=1", "method.teacher_temperature_start=1"]
    said = [line for line in warnings(tmp_path, capsys, shrunk(name, *FEWER, *warm)) if f"ln {PROTOTYPES}" in line]
    assert len(said) == 1 and "Lower method.teacher_temperature from 1 to 0.04" in said[0]


def let_gradients_into_the_teacher() -> None:
    for part in (Encoder, DistillHead):
        part.forward = torch.enable_grad()(part.forward)  # type: ignore[method-assign]
    dino.sharpen = lambda logits, centre, temperature: ((logits - centre) / temperature).softmax(-1)  # type: ignore[attr-defined]
    dino.follow_ = lambda teacher, student: teacher.load_state_dict(student.state_dict())  # type: ignore[attr-defined]


def test_no_stop_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = warnings(tmp_path, capsys, shrunk("dino", *FEWER, LONG), let_gradients_into_the_teacher)
    assert len([line for line in lines if "nearly the same features" in line]) == 1
