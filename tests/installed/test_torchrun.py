"""torchrun starts a run again where a process or a machine was lost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from machines import BIN, LAST, ended, nodes, program, same_bits, steps, words
from slurm import until
from support import checkpoint_bytes, free_port, launch


def test_torchrun_goes_on_after_a_process_was_killed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    agents = nodes([[*command, *program(home, output)[1:], "run.checkpoint_every=20"]], tmp_path)
    until(lambda: steps(output) >= 25)
    os.kill(children(agents[0].pid)[-1], signal.SIGKILL)
    assert ended(agents, tmp_path) == [0]
    assert "resuming from" in capsys.readouterr().out
    assert same_bits(home, output)


def test_torchrun_goes_on_with_the_machines_that_are_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In parts that are no larger than before, from the newest checkpoint, as two runs would have done by hand."""
    torchrun = [str(BIN / "torchrun"), "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=1", "--rdzv-conf=last_call_timeout=5"]
    more = ["run.accumulate=auto", "run.checkpoint_every=40", "run.timeout=30"]
    agents = nodes([[*torchrun, *program(home, tmp_path / "run")[1:], *more]] * 2, tmp_path)
    until(lambda: steps(tmp_path / "run") >= 45)
    for process in [*children(agents[1].pid), agents[1].pid]:
        os.kill(process, signal.SIGKILL)
    assert ended(agents, tmp_path) == [0, -signal.SIGKILL]
    said = capsys.readouterr().out
    assert "the batch of 8 is now worked on by 1 x 2 (processes x accumulation), before by 2 x 1" in said
    assert "step-00000040" in said and "resuming from" in said
    by_hand = [*words(home, tmp_path / "by-hand"), *more]
    assert launch("pretrain", by_hand, world=2, kill={"step": 45, "signal": 15}) == [75, 75]
    for later in sorted((tmp_path / "by-hand" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    assert launch("pretrain", by_hand) == [0]
    assert checkpoint_bytes(tmp_path / "run", LAST) == checkpoint_bytes(tmp_path / "by-hand", LAST)


def children(process: int) -> list[int]:
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in file.read_text(encoding="utf-8").split()]
