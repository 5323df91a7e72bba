"""What a run tells trackers, and what it does without them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import TINY_PRETRAIN, launch, metrics

BOTH = "run.trackers=[tensorboard,mlflow]"


def keep_mlflow_in(folder: Path) -> None:
    """A store of plain files, which mlflow wants to be asked for."""
    os.environ |= {"MLFLOW_TRACKING_URI": folder.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


def lose_mlflow() -> None:
    """A store of a kind that there is not."""
    os.environ["MLFLOW_TRACKING_URI"] = "nowhere://"


def unplug(folder: Path) -> None:
    """Trackers that fail from the third time on."""
    from accelerate import Accelerator

    keep_mlflow_in(folder)
    log = Accelerator.log

    def fail(self: Any, values: dict[str, Any], step: int) -> None:
        if step > 2:
            raise ConnectionError("the server is gone")
        log(self, values, step)

    Accelerator.log = fail  # type: ignore[method-assign,assignment]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    return str(tmp_path / "tiny.yaml")


def test_tensorboard_and_mlflow_at_once(tmp_path: Path, recipe: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, store = tmp_path / "run", tmp_path / "mlflow"
    assert launch("pretrain", [recipe, f"run.output={output}", BOTH], hook=partial(keep_mlflow_in, store)) == [0]
    expected = [(line["step"], line["loss"]) for line in metrics(output)]
    assert len(expected) == 15

    events = EventAccumulator(str(output / "logs" / "tiny"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, pytest.approx(v)) for s, v in expected]

    [file] = store.glob("*/*/metrics/loss")
    logged = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(int(step), float(value)) for _, value, step, *_ in logged] == expected
    [rate] = store.glob("*/*/params/optim.base_lr")
    assert rate.read_text(encoding="utf-8") == "0.03"


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    hook = partial(unplug, tmp_path / "mlflow")
    assert launch("pretrain", [recipe, f"run.output={output}", BOTH], hook=hook) == [0]
    assert capsys.readouterr().err.count("trackers are switched off: the server is gone") == 1
    assert len(metrics(output)) == 15


def test_a_tracker_that_cannot_start_is_the_users_error(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [recipe, f"run.output={tmp_path / 'run'}", "run.trackers=[mlflow]"]
    assert launch("pretrain", arguments, hook=lose_mlflow) == [2]
    said = capsys.readouterr().err
    assert "cannot start mlflow" in said and "Traceback" not in said
