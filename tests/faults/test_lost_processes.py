"""Two processes of which one raises, cannot save, or has fewer pictures: none hangs, nothing half done is left."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path

import pytest
from injected import at
from support import TINY_PRETRAIN, checkpoint_bytes, launch, metrics

LAST = 10


def fail(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a run of two processes that nothing happened to."""
    home = tmp_path_factory.mktemp("lost")
    (home / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert launch("pretrain", command(home, home / "whole"), world=2) == [0, 0]
    return home


def command(home: Path, output: Path, *more: str) -> list[str]:
    return [str(home / "tiny.yaml"), f"run.output={output}", "train.epochs=2", "run.checkpoint_every=2", *more]


def test_one_raises(home: Path, tmp_path: Path) -> None:
    fault = partial(
        at, "unlabeled.engine:Engine._micro", partial(fail, RuntimeError("a defect of the program")), 6, rank=1
    )
    codes = launch("pretrain", command(home, tmp_path, "run.timeout=10"), world=2, hook=fault)
    assert all(code not in (0, 75) for code in codes)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert not (tmp_path / "export").exists()
    assert launch("pretrain", command(home, tmp_path), world=2) == [0, 0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(home / "whole", LAST)


def test_one_cannot_save(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = partial(fail, OSError(errno.ENOSPC, "No space left on device"))
    fault = partial(at, "unlabeled.manifest:describe", full, 6, rank=0)  # in the second checkpoint
    assert launch("pretrain", command(home, tmp_path), world=2, hook=fault) == [2, 2]
    said = capsys.readouterr().err
    assert "No space left on device" in said and "step-00000002 is intact" in said and "Traceback" not in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert launch("pretrain", command(home, tmp_path), world=2) == [0, 0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(home / "whole", LAST)


def test_one_cannot_export(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = partial(
        at, "unlabeled.export:write_export", partial(fail, OSError(errno.EDQUOT, "Disk quota exceeded")), rank=0
    )
    assert launch("pretrain", command(home, tmp_path), world=2, hook=fault) == [2, 2]
    said = capsys.readouterr().err
    assert "Disk quota exceeded" in said and "Traceback" not in said and not (tmp_path / "export").exists()


def test_seven_pictures_on_two_processes(home: Path, tmp_path: Path) -> None:
    few = ["data.train_size=7", "data.val_size=5", "train.batch_size=2", "optim.warmup_epochs=0", "run.workers=1"]
    scored = ["evaluate.knn.k=3", "evaluate.crop_pct=1.0"]
    losses = []
    for world in (1, 2):
        output = tmp_path / str(world)
        arguments = command(home, output, *few, *scored, "method.encoder.drop_path=0.0")
        assert launch("pretrain", arguments, world=world) == [0] * world
        losses.append([line["loss"] for line in metrics(output) if "loss" in line])
    assert len(losses[0]) == 2 * 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)
