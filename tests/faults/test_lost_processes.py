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


def test_one_raises_then_cannot_save_then_cannot_export(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(home, tmp_path)
    defect = partial(fail, RuntimeError("a defect of the program"))
    fault = partial(at, "unlabeled.train.engine:Engine._micro", defect, 4, rank=1)
    codes = launch("pretrain", [*arguments, "run.timeout=10"], world=2, hook=fault)
    assert all(code not in (0, 75) for code in codes) and names(tmp_path / "checkpoints") == ["step-00000002"]
    capsys.readouterr()

    full = partial(fail, OSError(errno.ENOSPC, "No space left on device"))
    fault = partial(at, "unlabeled.manifest:describe", full, 8, rank=0)  # five files are read, then written
    assert launch("pretrain", arguments, world=2, hook=fault) == [2, 2]
    said = capsys.readouterr().err
    assert "No space left on device" in said and "step-00000002 is intact" in said and "Traceback" not in said
    assert names(tmp_path / "checkpoints") == ["step-00000002"]

    quota = partial(fail, OSError(errno.EDQUOT, "Disk quota exceeded"))
    fault = partial(at, "unlabeled.backbone.folder:write_export", quota, rank=0)
    assert launch("pretrain", arguments, world=2, hook=fault) == [2, 2]
    said = capsys.readouterr().err
    assert "Disk quota exceeded" in said and "Traceback" not in said and not (tmp_path / "export").exists()

    assert launch("pretrain", arguments, world=2) == [0, 0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(home / "whole", LAST)
    assert names(tmp_path / "export") == names(home / "whole" / "export")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_seven_pictures_on_two_processes(home: Path, tmp_path: Path) -> None:
    few = ["data.train_size=7", "data.val_size=5", "train.batch_size=2", "optim.warmup_epochs=0", "run.workers=1"]
    scored = ["evaluate.knn.k=3", "evaluate.crop_pct=1.0", "evaluate.linear=null"]
    assert launch("pretrain", command(home, tmp_path, *few, *scored), world=2) == [0, 0]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6] and "knn" in lines[-1]
