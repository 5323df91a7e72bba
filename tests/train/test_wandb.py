"""Weights & Biases, offline: what is written into its own file is what was logged."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unlabeled.errors import UserError
from unlabeled.train.tracker import Tracked, check_installed, tracker_names
from unlabeled.train.trackers import wandb as ours

BLOCK, HEAD = 32768, 7  # of LevelDB's log format, in which wandb keeps its records


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nobody logged in."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:  # the end of a block is filled up
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def rows(file: Path) -> list[dict[str, Any]]:
    """What was logged, wandb's own keys left out."""
    found = [record.history for record in records(file) if record.HasField("history")]
    told = [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in one.item} for one in found]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in told]


def test_values_and_pictures_are_in_its_file_and_a_run_goes_on_as_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pictures" / "step-2.png")
    logs, recipe = tmp_path / "run" / "logs", {"optim.base_lr": "0.03"}

    first = ours.start(Tracked("tiny", logs, recipe, step=0))
    first.log(1, {"loss": 0.5, "lr": 1e-3})
    first.log(2, {"loss": 0.25, "lr": float("nan")})
    first.log(2, {"knn": 50.0})
    first.show(2, tmp_path / "pictures" / "step-2.png")
    first.close()
    [file] = logs.glob("wandb/offline-run-*/*.wandb")
    [loss, late, score, picture] = rows(file)
    assert (loss, score) == ({"loss": 0.5, "lr": 1e-3, "step": 1}, {"knn": 50.0, "step": 2})
    assert late == {"loss": 0.25, "lr": "NaN", "step": 2} or np.isnan(late["lr"])
    assert picture["step"] == 2
    assert np.array_equal(np.asarray(Image.open(file.parent / "files" / picture["pictures.path"])), pixels)
    [run] = [record.run for record in records(file) if record.HasField("run")]
    assert (run.project, run.display_name) == ("unlabeled", "tiny")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["optim.base_lr"] == "0.03"

    time.sleep(1.1)  # its folders are named by the second
    again = ours.start(Tracked("tiny", logs, recipe, step=1))
    again.log(2, {"loss": 0.25})
    again.close()
    time.sleep(1.1)
    anew = ours.start(Tracked("tiny", logs, recipe, step=0))
    anew.log(1, {"loss": 0.5})
    anew.close()
    files = sorted(logs.glob("wandb/offline-run-*/*.wandb"))
    known = [one.stem.removeprefix("run-") for one in files]  # by name: the last records may be on their way
    assert len(files) == 3 and len(set(known)) == 2 and known[:2] == [run.run_id] * 2, (files, known)
    assert rows(files[1]) == [{"loss": 0.25, "step": 2}]


def test_nobody_is_asked_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setattr("wandb.errors.term.terminput", lambda *_, **__: pytest.fail("it asks"))
    with pytest.raises(UserError, match="no key of an account"):
        ours.start(Tracked("tiny", tmp_path, {}, step=0))
    assert "wandb login" in ours.MEND and "WANDB_MODE=offline" in ours.MEND


def test_trackers_are_named_by_their_files_and_their_packages() -> None:
    assert tracker_names() == ["mlflow", "tensorboard", "trackio", "wandb"]
    check_installed(["wandb", "tensorboard"])
    with pytest.raises(UserError, match="nowhere_to_be_found, not installed here"):
        check_installed(["tensorboard", "nowhere_to_be_found"])
