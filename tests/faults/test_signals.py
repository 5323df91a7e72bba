"""A signal anywhere ends a run with 75 or 0, leaves nothing half done, and costs nothing: the same command goes on."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from injected import at, in_a_worker, own_group, to_the_group, to_this_one
from support import ROOT, TINY_FINETUNE, TINY_PRETRAIN, checkpoint_bytes, launch, metrics

from unlabeled.signals import stop
from unlabeled.streams import make_lasting

STOPPED, LAST = 75, 15
SCORED = ["evaluate.every=6", "evaluate.knn.k=3", "evaluate.crop_pct=1.0", "evaluate.linear=null"]
OPEN = "unlabeled.data.opened:Opened.pictures"
ENGINE = "unlabeled.train.engine:Engine.__init__"
ENCODE = "unlabeled.evaluate.features:stack_centred"
SCORE = "unlabeled.evaluate.evaluation:Evaluator.__call__"
EXPORT = "unlabeled.stages.pretrain:split_heads"
WRITE = "unlabeled.backbone.folder:write_export"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes and one uninterrupted run of each stage."""
    home = tmp_path_factory.mktemp("signals")
    (home / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (home / "finetune.yaml").write_text(
        TINY_FINETUNE.replace("UNSET", str(home / "pretrain" / "export")), encoding="utf-8"
    )
    for stage in ("pretrain", "finetune"):
        assert launch(stage, command(home, stage, home / stage)) == [0]
    return home


def command(home: Path, stage: str, output: Path, *more: str) -> list[str]:
    return [str(home / f"{stage}.yaml"), f"run.output={output}", *(SCORED if stage == "pretrain" else []), *more]


def assert_same_end(home: Path, stage: str, output: Path) -> None:
    assert checkpoint_bytes(output, LAST) == checkpoint_bytes(home / stage, LAST)
    for file in (home / stage / "export").glob("*.safetensors"):
        assert (output / "export" / file.name).read_bytes() == file.read_bytes()
    assert steps_of(output) == steps_of(home / stage)
    assert not [path for path in output.rglob("*") if "writing" in path.name]


def steps_of(output: Path) -> list[tuple[int, bool]]:
    return [(line["step"], "loss" in line) for line in metrics(output)]


def strike(place: str, number: int = signal.SIGTERM, call: int = 1) -> Callable[[], None]:
    """A fault: a signal to the group there."""
    return partial(at, place, partial(to_the_group, number), call)


# one after the other, each in the run that the one before has stopped
PLACES: dict[str, tuple[Callable[[], None], ...]] = {
    "start, while pictures are looked for": (strike(OPEN),),
    "start, while the model is built": (strike(ENGINE, signal.SIGINT),),
    "warm-up, by the first worker": (partial(in_a_worker, to_the_group, 0),),
    "warm-up, while workers start": (
        partial(at, "unlabeled.data.batch.loader:_begin", to_the_group, in_children=True),
    ),
    "a save": (strike("unlabeled.manifest:describe", call=3),),
    "the end of a save": (strike("unlabeled.train.checkpoint:Checkpoints._prune", signal.SIGUSR1),),
    "the evaluation that was left out": (strike(SCORE),),
    "a step, and again after its checkpoint": (
        strike("unlabeled.train.engine:Engine._update", call=2),
        strike("unlabeled.data.batch.loader:Feed.close"),
        strike("torch.distributed:is_initialized", call=0),
    ),
    "evaluation at step 12": (strike(SCORE, signal.SIGINT),),
    "evaluation after the last step": (strike(SCORE, call=2),),
    "before the export": (strike(EXPORT),),
    "the export": (strike(WRITE, signal.SIGUSR1),),
}


def test_the_group_is_stopped_anywhere(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(home, "pretrain", tmp_path, "run.workers=1")
    for place, faults in PLACES.items():
        codes = launch("pretrain", arguments, hook=partial(own_group, *faults))
        said = capsys.readouterr().err
        assert codes == [STOPPED] and "stopped by SIG" in said and "Traceback" not in said, (place, codes, said)
        if place.startswith(("start", "warm-up")):
            assert "before the first step" in said and not (tmp_path / "checkpoints").exists(), place
    assert launch("pretrain", arguments) == [0]
    assert_same_end(home, "pretrain", tmp_path)


# (where, which call, of which process): again one after the other
TOLD = [(OPEN, 1, 0), (SCORE, 1, 1), (EXPORT, 1, 1), (WRITE, 1, 0)]


def test_processes_stop_together_where_one_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(home, "pretrain", tmp_path)
    for place, call, rank in TOLD:
        fault = partial(at, place, to_this_one, call, rank=rank)
        codes = launch("pretrain", arguments, world=2, hook=fault)
        said = capsys.readouterr().err
        assert codes == [STOPPED] * 2 and "Traceback" not in said, (place, call, codes, said)
    assert launch("pretrain", arguments, world=2) == [0, 0]
    assert steps_of(tmp_path) == steps_of(home / "pretrain")


def test_a_run_that_is_cut_off_in_its_last_scoring_goes_on_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(home, "finetune", tmp_path)
    score = "unlabeled.transfer.result:Scorer.__call__"
    killed = partial(at, score, partial(to_this_one, signal.SIGKILL))
    assert launch("finetune", arguments, hook=killed) == [-signal.SIGKILL]
    no_step = partial(at, "unlabeled.train.engine:Engine._forward_backward", partial(to_this_one, signal.SIGKILL))
    stopped = partial(own_group, no_step, strike("unlabeled.transfer.label_task:write_result"))
    assert launch("finetune", arguments, hook=stopped) == [STOPPED]
    assert launch("finetune", arguments, hook=no_step) == [0]
    assert_same_end(home, "finetune", tmp_path)


def test_a_program_that_is_told_all_the_time_ends_as_told_once(home: Path, tmp_path: Path) -> None:
    """From when it can hear signals, which is before it has imported anything, to its very end."""
    program = [sys.executable, str(ROOT / "pretrain.py"), *command(home, "pretrain", tmp_path)]
    run = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not hears(run.pid, signal.SIGTERM):
        assert run.poll() is None
        time.sleep(0.001)
    while run.poll() is None:
        os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.01)
    said = run.communicate()[1]
    assert run.returncode == STOPPED and "stopped by SIGTERM before the first step" in said and "Traceback" not in said


def test_nothing_heavy_is_imported_before_signals_are_heard() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'rich', 'timm', 'PIL', 'yaml'}"
    for module in ("pretrain", "finetune", "unlabeled.__main__"):
        asked = f"import sys, {module}; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
        subprocess.run([sys.executable, "-c", asked], check=True, cwd=ROOT)


def hears(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_the_end_of_a_terminal_is_a_signal_like_others() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("make", [os.pipe, pty.openpty])
def test_what_nobody_reads_any_more_is_no_reason_to_stop(
    make: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = make()
    with os.fdopen(write, "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        make_lasting()
        print("é", file=sys.stderr, flush=True)
        assert os.read(read, 9).split() == [b"\\xe9"]
        os.close(read)
        with pytest.raises(OSError, match=r"Broken pipe|Input/output"):
            os.write(write, b"x")
        print("x" * 100_000, file=sys.stderr, flush=True)


def test_a_full_disk_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream, open(os.devnull, "w", encoding="utf-8") as nowhere:
        monkeypatch.setattr(sys, "stderr", stream)
        make_lasting()
        with pytest.raises(OSError, match="No space left"):
            print("x", file=sys.stderr, flush=True)
        os.dup2(nowhere.fileno(), stream.fileno())  # or it would be tried again


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
