"""Launchers of several machines, each with folders of its own on this one, and the runs that they launch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support import ROOT, checkpoint_bytes, metrics

LAST = 150
MORE = ["train.epochs=30", "run.checkpoint_every=1000"]
STARTED: list[subprocess.Popen[str]] = []
BIN = Path(sys.executable).parent
INSTALLED = {"PYTHONPATH": str(ROOT / "ssl"), "OMP_NUM_THREADS": "1"}


def words(home: Path, output: Path) -> list[str]:
    return [str(home / "tiny.yaml"), f"run.output={output}", *MORE]


def program(home: Path, output: Path) -> list[str]:
    return [sys.executable, str(ROOT / "pretrain.py"), *words(home, output)]


def steps(output: Path) -> int:
    return metrics(output)[-1]["step"] if (output / "metrics.jsonl").exists() and metrics(output) else 0


def same_bits(home: Path, output: Path) -> bool:
    return checkpoint_bytes(output, LAST) == checkpoint_bytes(home / "quiet", LAST)


def nodes(commands: Sequence[Sequence[str]], homes: Path, **variables: str) -> list[subprocess.Popen[str]]:
    """A launcher per node, each with its own folders; the second starts later."""
    started = []
    for number, command in enumerate(commands):
        folder = homes / f"node-{number}"
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(folder / "tmp"), "HOME": str(folder), "JOB_COMPLETION_INDEX": str(number)}
        log = open(folder / "log", "w", encoding="utf-8")  # noqa: SIM115 - the process writes there
        how = {"cwd": folder, "stdout": log, "stderr": log, "env": os.environ | INSTALLED | own | variables}
        how["start_new_session"] = True
        started.append(subprocess.Popen(list(command), **how))  # type: ignore[call-overload]
        time.sleep(3 * (number == 0))
    STARTED.extend(started)
    return started


def ended(started: Sequence[subprocess.Popen[str]], homes: Path) -> list[int]:
    codes = [process.wait(400) for process in started]
    for log in sorted(homes.glob("node-*/log")):
        print(log.read_text(encoding="utf-8"))
    return codes
