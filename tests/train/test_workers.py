"""A worker that is killed, hangs or has no shared memory left ends the run with a reason and a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from injected import at, in_a_worker
from support import TINY_PRETRAIN, checkpoint_bytes, launch

from unlabeled.data.batch.workers import forgive_who_hangs_up

LAST, WHEN = 15, 10
AHEAD = 5  # batches that are made before they are asked for
STOPPED = 75


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    home = tmp_path_factory.mktemp("whole")
    (home / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert launch("pretrain", [str(home / "tiny.yaml"), f"run.output={home}/run", "run.checkpoint_every=100"]) == [0]
    return home / "run"


def test_a_run_that_breaks_off_a_receipt_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: said.append(kind))
    forgive_who_hangs_up()
    for error in (ConnectionResetError(), EOFError(), BrokenPipeError(), OSError(), MemoryError()):
        sys.excepthook(type(error), error, None)
    assert said == [OSError, MemoryError]


def killed() -> None:
    in_a_worker(lambda: os.kill(os.getpid(), signal.SIGKILL), WHEN)


def hanging() -> None:
    in_a_worker(lambda: time.sleep(600), WHEN)


def frozen() -> None:
    """The batches that it has made lie in memory that only it can hand over."""
    in_a_worker(lambda: os.kill(os.getpid(), signal.SIGSTOP), WHEN)


def frozen_when_told_to_stop() -> None:
    """The main process gets SIGTERM a second later."""

    def freeze() -> None:
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getppid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    in_a_worker(freeze, WHEN)


def frozen_in_evaluation() -> None:
    at(
        "unlabeled.evaluate.features:CentreCrops.__getitem__",
        lambda: os.kill(os.getpid(), signal.SIGSTOP),
        in_children=True,
    )


def without_shared_memory() -> None:
    """A /dev/shm of 64 kB for this process and its workers only."""
    new_mounts = 0x20000
    if ctypes.CDLL(None).unshare(new_mounts) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], check=True)


def may_mount() -> bool:
    probe = "unshare -m sh -c 'mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm'"
    return subprocess.run(probe, shell=True, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("hook", "more", "reason"),
    [
        (
            killed,
            [],
            (
                "loader worker 0 (process ",
                "was ended by SIGKILL. Out of memory? Lower run.workers, or data.max_pixels, which bounds",
            ),
        ),
        (hanging, ["run.timeout=6"], ("no loader worker gave a batch in run.timeout=6 seconds: does the storage",)),
        (
            frozen,
            ["run.timeout=3"],
            ("no loader worker gave a batch in run.timeout=3 ", "stopped by a signal (SIGSTOP)"),
        ),
        (frozen_when_told_to_stop, [], ("stopped by SIGTERM at step",)),
    ],
)
@pytest.mark.parametrize("world", [1, 2])
def test_a_lost_worker_costs_nothing(
    hook: Callable[[], None],
    more: list[str],
    reason: tuple[str, ...],
    world: int,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    recipe = [str(tmp_path / "tiny.yaml"), "run.workers=1", "run.checkpoint_every=100"]
    cut = [*recipe, f"run.output={tmp_path}/cut"]
    assert launch("pretrain", [*cut, *more], hook=hook, world=world) == [STOPPED] * world
    said = capsys.readouterr().err
    assert all(part in said for part in reason) and "Traceback" not in said
    [saved] = (tmp_path / "cut" / "checkpoints").iterdir()
    assert WHEN - AHEAD <= int(saved.name.removeprefix("step-")) <= WHEN
    if world == 1:
        assert launch("pretrain", cut) == [0]
        assert checkpoint_bytes(tmp_path / "cut", LAST) == checkpoint_bytes(whole, LAST)


def test_a_worker_that_freezes_in_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path}/run", "run.workers=1", "evaluate.knn.k=3"]
    assert launch("pretrain", [*arguments, "run.timeout=3"], hook=frozen_in_evaluation) == [STOPPED]
    said = capsys.readouterr().err
    assert "run.timeout=3" in said and "(SIGSTOP)" in said and "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / "step-00000015").exists()


@pytest.mark.skipif(not may_mount(), reason="may not mount a file system")
def test_full_shared_memory_says_how_to_get_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path}/run", "run.workers=2", "method.view.size=128"]
    assert launch("pretrain", arguments, hook=without_shared_memory) == [STOPPED]
    said = capsys.readouterr().err
    assert "--shm-size" in said and "run.workers=0" in said and "Traceback" not in said
