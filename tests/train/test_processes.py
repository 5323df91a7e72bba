"""One process and two see the same batches, the same crops and masks, and learn the same."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    TINY_FINETUNE,
    TINY_PRETRAIN,
    assert_close_weights,
    checkpoint_bytes,
    free_port,
    launch,
    metrics,
    weights,
)
from torch.distributed.rendezvous import rendezvous

from unlabeled.processes import WAY

STEPS = 20
MORE = ["train.epochs=4", "method.encoder.drop_path=0.0", "run.checkpoint_every=100"]


def write_samples(folder: str) -> None:
    """Log a digest of every sample that reaches the model, by step and row."""
    import hashlib

    from unlabeled.train.engine import Engine

    original = Engine._micro

    def logged(engine: Engine, batch: Any, progress: Any, parts: int) -> Any:
        rank = engine.accelerator.process_index
        view = batch.views[0]
        with open(os.path.join(folder, f"{rank}.jsonl"), "a", encoding="utf-8") as file:
            for i, index in enumerate(batch.index.tolist()):
                tensors = (
                    [view.pixels[:, i], *(t[:, i] for t in view.mask if t is not None)]
                    if view.mask
                    else [view.pixels[:, i]]
                )
                digest = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()
                file.write(json.dumps([progress.step, rank, index, digest]) + "\n")
        return original(engine, batch, progress, parts)

    Engine._micro = logged  # type: ignore[method-assign]


def samples(folder: Path) -> list[list[Any]]:
    """(step, index, digest) in the order of the global batch."""
    lines = [
        json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()
    ]
    ordered = sorted(lines, key=lambda line: line[:2])  # stable: rows of one rank stay in order
    return [[step, index, digest] for step, _, index, digest in ordered]


def run(home: Path, name: str, world: int, *more: str, stage: str = "pretrain", recipe: str = TINY_PRETRAIN) -> Path:
    output = home / name
    (home / f"{name}.samples").mkdir(exist_ok=True)
    (home / f"{stage}.yaml").write_text(recipe, encoding="utf-8")
    hook = partial(write_samples, str(home / f"{name}.samples"))
    arguments = [str(home / f"{stage}.yaml"), f"run.output={output}", *more]
    assert launch(stage, arguments, world=world, hook=hook) == [0] * world
    return output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("processes")
    run(home, "one", 1, *MORE)
    run(home, "two", 2, *MORE, "run.workers=1")
    run(home, "accumulated", 1, *MORE, "run.accumulate=2")
    return home


@pytest.mark.parametrize("other", ["two", "accumulated"])
def test_same_samples_losses_and_weights(home: Path, other: str) -> None:
    assert len(samples(home / "one.samples")) == STEPS * 8
    assert samples(home / "one.samples") == samples(home / f"{other}.samples")
    one, two = ([line["loss"] for line in metrics(home / name)] for name in ("one", other))
    assert len(one) == STEPS
    assert two == pytest.approx(one, rel=1e-5)
    assert_close_weights(home / "one", home / other, STEPS)


def test_two_one_two(home: Path) -> None:
    stop = {"step": 6, "signal": 15}
    arguments = [str(home / "pretrain.yaml"), f"run.output={home / 'mixed'}", *MORE]
    (home / "mixed.samples").mkdir()
    hook = partial(write_samples, str(home / "mixed.samples"))
    assert launch("pretrain", arguments, world=2, kill=stop, hook=hook) == [75, 75]
    device = [*arguments, "run.workers=2", "run.views=device"]
    assert launch("pretrain", device, world=1, kill=stop | {"step": 12}, hook=hook) == [75]
    assert launch("pretrain", arguments, world=2, hook=hook) == [0, 0]
    one, mixed = (metrics(home / name) for name in ("one", "mixed"))
    assert [line["loss"] for line in mixed] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["lr"] for line in mixed] == [line["lr"] for line in one]
    assert samples(home / "mixed.samples") == samples(home / "one.samples"), "the same crops and masks"
    assert_close_weights(home / "one", home / "mixed", STEPS)


def test_accumulation_follows_the_number_of_processes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE, "run.accumulate=auto"]
    assert launch("pretrain", arguments, world=2, kill={"step": 6, "signal": 15}) == [75, 75]
    assert "8 = 4 per process x 2 processes x 1 accumulation" in capsys.readouterr().err
    assert launch("pretrain", arguments) == [0]
    said = " ".join(capsys.readouterr().err.split())
    assert "8 = 4 per process x 1 process x 2 accumulation" in said
    assert "auto = 2: a process has had 4 pictures at once before" in said
    assert "the batch of 8 is now worked on by 1 x 2 (processes x accumulation), before by 2 x 1" in said
    ours, theirs = ([line["loss"] for line in metrics(output)] for output in (tmp_path, home / "accumulated"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert_close_weights(tmp_path, home / "accumulated", STEPS)


def test_a_signal_to_one_process_stops_both(home: Path, tmp_path: Path) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE]
    assert launch("pretrain", arguments, world=2, kill={"step": 3, "signal": 15, "ranks": [1]}) == [75, 75]


def _killed_while_looking() -> None:
    """End the main process while it looks for pictures and the other waits for it."""
    from unlabeled.data.sources import shapes

    def source(*_: Any) -> Any:
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the main process looks first")

    shapes.Config.source = source  # type: ignore[method-assign]


def test_a_main_process_lost_while_it_looks_for_pictures_is_noticed(home: Path, tmp_path: Path) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE]
    assert launch("pretrain", arguments, world=2, hook=_killed_while_looking) == [-9, 69]


def _fail_to_save() -> None:
    from unlabeled.errors import UserError
    from unlabeled.train.checkpoint import Checkpoints

    def save(*_: Any) -> None:
        raise UserError("the disk is full")

    Checkpoints.save = save  # type: ignore[method-assign,assignment]


def test_a_failed_save_ends_both(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE]
    assert launch("pretrain", arguments, world=2, hook=_fail_to_save) == [2, 2]
    assert "the disk is full" in capsys.readouterr().err


def _nan_on_rank_one() -> None:
    from unlabeled.pretrain.methods.mae import MAE

    forward = MAE.forward

    def poisoned(self: MAE, batch: Any, progress: Any) -> Any:
        output = forward(self, batch, progress)
        broken = progress.step == 4 and os.environ.get("RANK") == "1"
        return output._replace(loss=output.loss * float("nan")) if broken else output

    MAE.forward = poisoned  # type: ignore[method-assign]


def test_a_broken_loss_on_one_process_is_skipped_on_both(home: Path, tmp_path: Path) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE, "run.checkpoint_every=1"]
    assert launch("pretrain", arguments, world=2, hook=_nan_on_rank_one) == [0, 0]
    before, after = (weights(tmp_path, step) for step in (4, 5))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(tmp_path)[-1]["skipped"] == 1


def test_evaluation_agrees(home: Path, tmp_path: Path) -> None:
    evaluate = ["evaluate.knn.k=3", "evaluate.crop_pct=1.0", "evaluate.fractions=[1.0]"]
    scores = []
    for name, world in (("one", 1), ("two", 2)):
        arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path / name}", *MORE, *evaluate]
        assert launch("pretrain", arguments, world=world) == [0] * world
        last = metrics(tmp_path / name)[-1]
        scores.append((last["knn"], last["linear"]))
    assert scores[0] == pytest.approx(scores[1], abs=5.1)  # one of 20 pictures may fall on the other side


def test_fine_tuning_sees_the_same_samples(home: Path) -> None:
    recipe = TINY_FINETUNE.replace("UNSET", str(home / "one" / "export"))
    plain = ["task.strategy.drop_path=0.0", "optim.base_lr=0.003"]
    run(home, "tuned-1", 1, *plain, stage="finetune", recipe=recipe)
    run(home, "tuned-2", 2, *plain, stage="finetune", recipe=recipe)
    assert samples(home / "tuned-1.samples") == samples(home / "tuned-2.samples")
    one, two = ([line["loss"] for line in metrics(home / f"tuned-{n}") if "loss" in line] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_killed_process_takes_the_other_along_and_the_restart_is_exact(home: Path, tmp_path: Path) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={tmp_path}", *MORE, "run.checkpoint_every=2"]
    codes = launch("pretrain", [*arguments, "run.timeout=20"], world=2, kill={"step": 5, "ranks": [1]})
    assert codes[1] == -9 and codes[0] not in (0, 75)
    assert launch("pretrain", arguments, world=2) == [0, 0]
    assert checkpoint_bytes(tmp_path, STEPS) == checkpoint_bytes(home / "two", STEPS)


@pytest.mark.parametrize(("way", "found"), [("env://", True), (f"{WAY}://", False)])
def test_processes_started_again_do_not_read_what_those_before_wrote(
    way: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store of a launcher lives on; torch's own way finds in it where those were that are gone."""
    own = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    stores = []
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        store, rank, world = next(iter(rendezvous(way, timeout=timedelta(seconds=20))))
        assert (rank, world) == (0, 1)
        stores.append(store)
        stores[0].set("address", "gone")
    assert stores[1].check(["address"]) is found
