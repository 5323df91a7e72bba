"""What a run writes down and tells trackers, and what it does without them."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import TINY_PRETRAIN, launch, metrics

from unlabeled.data.batch.bad import BadSamples
from unlabeled.errors import UserError
from unlabeled.train import tracking
from unlabeled.train.tracker import check_installed
from unlabeled.train.tracking import MetricsFile

BOTH = "run.trackers=[tensorboard,mlflow]"


def keep_mlflow_in(folder: Path) -> None:
    """A store of plain files, which mlflow wants to be asked for."""
    os.environ |= {"MLFLOW_TRACKING_URI": folder.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


def lose_mlflow() -> None:
    """A store of a kind that there is not."""
    os.environ["MLFLOW_TRACKING_URI"] = "nowhere://"


def unplug(folder: Path) -> None:
    """An mlflow that fails from the third time on."""
    import mlflow

    keep_mlflow_in(folder)
    log = mlflow.log_metrics

    def fail(values: dict[str, Any], step: int) -> None:
        if step > 2:
            raise ConnectionError("the server is gone")
        log(values, step=step)

    mlflow.log_metrics = fail


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    return str(tmp_path / "tiny.yaml")


def test_tensorboard_and_mlflow_at_once(tmp_path: Path, recipe: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, store = tmp_path / "run", tmp_path / "mlflow"
    arguments = [recipe, f"run.output={output}", BOTH, "run.pictures_every=6"]
    assert launch("pretrain", arguments, hook=partial(keep_mlflow_in, store)) == [0]
    expected = [(line["step"], line["loss"]) for line in metrics(output)]
    assert len(expected) == 15

    events = EventAccumulator(str(output / "logs" / "tiny"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, pytest.approx(v)) for s, v in expected]

    [file] = store.glob("*/*/metrics/loss")
    logged = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(int(step), float(value)) for _, value, step, *_ in logged] == expected
    # every six steps and at the end
    drawn = [output / "pictures" / f"step-{step:08d}.png" for step in (6, 12, 15)]
    assert sorted((output / "pictures").iterdir()) == drawn
    shown = events.Images("pictures")
    assert [image.step for image in shown] == [6, 12, 15]
    for file, image in zip(drawn, shown, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        assert np.array_equal(pixels, np.asarray(Image.open(file)))
        [artifact] = store.glob(f"*/*/artifacts/pictures/{file.name}")
        assert artifact.read_bytes() == file.read_bytes()
    [rate] = store.glob("*/*/params/optim.base_lr")
    assert rate.read_text(encoding="utf-8") == "0.03"


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    hook = partial(unplug, tmp_path / "mlflow")
    assert launch("pretrain", [recipe, f"run.output={output}", BOTH], hook=hook) == [0]
    assert capsys.readouterr().err.count("mlflow is switched off: the server is gone") == 1
    assert len(metrics(output)) == 15
    assert [step for step, _ in in_tensorboard(output)] == list(range(1, 16))  # the other goes on


def test_a_killed_run_goes_on_where_its_trackers_know_it(tmp_path: Path, recipe: str) -> None:
    output, store = tmp_path / "run", tmp_path / "mlflow"
    hook, arguments = partial(keep_mlflow_in, store), [recipe, f"run.output={output}", BOTH]
    assert launch("pretrain", arguments, hook=hook, kill={"step": 8}) == [-9]
    assert launch("pretrain", arguments, hook=hook) == [0]
    expected = [(line["step"], line["loss"]) for line in metrics(output)]
    assert in_tensorboard(output) == [(step, pytest.approx(loss)) for step, loss in expected]
    # one run, with the steps after the checkpoint twice
    [file] = store.glob("*/*/metrics/loss")
    logged = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    sent = [(int(step), float(value)) for _, value, step, *_ in logged]
    assert sent == expected[:7] + expected[6:]  # killed before the eighth was logged


def test_a_run_that_starts_over_is_a_new_one(tmp_path: Path, recipe: str) -> None:
    output, store = tmp_path / "run", tmp_path / "mlflow"
    hook, arguments = partial(keep_mlflow_in, store), [recipe, f"run.output={output}", BOTH, "train.epochs=1"]
    assert launch("pretrain", arguments, hook=hook) == [0]
    assert launch("pretrain", [*arguments, "--fresh", "--force"], hook=hook) == [0]
    assert len(list(store.glob("*/*/metrics/loss"))) == 2


def test_a_tracker_that_is_not_installed_is_the_users_error(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed here. Run `pip install tensorboard mlflow`"):
        check_installed(["tensorboard", "mlflow"])


def test_a_tracker_that_cannot_start_is_the_users_error(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [recipe, f"run.output={tmp_path / 'run'}", "run.trackers=[mlflow]"]
    assert launch("pretrain", arguments, hook=lose_mlflow) == [2]
    said = capsys.readouterr().err
    assert "cannot start mlflow" in said and "Traceback" not in said


def in_tensorboard(output: Path) -> list[tuple[int, float]]:
    """(step, loss) in the event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "logs" / "tiny"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def line(step: int, **more: Any) -> bytes:
    return json.dumps({"step": step, "loss": 1.5, **more}).encode() + b"\n"


# what may follow good lines
BROKEN = {
    "nothing": b"",
    "a torn line": b'{"step": 3, "lo',
    "a torn line that is ended": b'{"step": 3, "lo\n',
    "a byte that is no UTF-8": b'{"step": 3, "loss": "\xff"}\n',
    "zeros, as a power cut leaves them": bytes(5000),
    "no step": b'{"loss": 3}\n',
    "null": b'{"step": null}\n',
    "a step in words": b'{"step": "3"}\n',
    "no object": b"3\n",
    "a deep list": b"[" * 100_000 + b"\n",
    "an empty line": b"\n\n",
    "a long line": b"x" * 3_000_000,
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("later", [b"", line(4) + line(5)])
def test_metrics_go_on_after_a_broken_line(kind: str, later: bytes, tmp_path: Path) -> None:
    good = line(1) + line(2) + line(2, knn=50.0)
    for broken in (BROKEN[kind] + later, later + BROKEN[kind]):
        (tmp_path / "metrics.jsonl").write_bytes(good + broken)
        file = MetricsFile(tmp_path / "metrics.jsonl", 3)
        file.write(4, {"loss": 1.5})
        file.close()
        assert (tmp_path / "metrics.jsonl").read_bytes() == good + line(4)


@pytest.mark.parametrize("tail", [1, 7, 50, 1 << 20])
def test_metrics_are_kept_as_a_reader_of_every_line_would(tail: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tracking, "TAIL", tail)
    lines = [line(step, note="x" * (step % 5)) for step in range(1, 30)]
    for step in range(31):
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
        MetricsFile(tmp_path / "metrics.jsonl", step).close()
        # a line that is longer than what is read at a time is not understood
        kept = lines[:step] if tail >= 50 else []
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept)


def test_a_whole_last_line_that_is_not_ended_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes((line(1) + line(2))[:-1])
    MetricsFile(tmp_path / "metrics.jsonl", 3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == line(1) + line(2)


def test_a_million_lines_cost_no_memory(tmp_path: Path) -> None:
    """Whether few of them are dropped or nearly all: only those are read, and only the ends are understood."""
    file, many = tmp_path / "metrics.jsonl", 1_000_000
    file.write_bytes(b"".join(b'{"step": %7d, "loss": 1.5}\n' % i for i in range(1, many + 1)))
    for step in (many + 5, many, many - 3, many // 2, 2, 0):
        tracemalloc.start()
        MetricsFile(file, step).close()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6
        assert file.stat().st_size == min(step, many) * len(b'{"step": 1000000, "loss": 1.5}\n')


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        MetricsFile(tmp_path, 3)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        BadSamples(tmp_path, 9, 0.5)


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_samples_go_on_after_a_broken_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.jsonl"
    good = b'{"key": "a", "reason": "gone"}\n'
    others = b'{"key": null}\n{"key": ["x"]}\n{"key": 5}\n'
    file.write_bytes(good + others + BROKEN[kind])
    bad = BadSamples(file, 9, 0.5)
    assert bad.keys == {"a"} and not bad.add("a", "again") and bad.add("b", "cut short")
    last = file.read_bytes().split(b"\n")[-2:]
    assert [json.loads(last[0]), last[1]] == [{"key": "b", "reason": "cut short"}, b""]
    assert BadSamples(file, 9, 0.5).keys == {"a", "b"}
