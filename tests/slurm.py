"""Slurm in small, on this machine: `sbatch`, `srun` and `scontrol` with the variables and signals of the real ones.

A node is a process of `srun` here, with a working folder and temporary files of its own. Behaviour after the manual
pages of Slurm 23: `srun` hands SIGUSR1 on to its tasks and kills them at SIGTERM; its exit code is the highest of them.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

JOB = "4711"


class Slurm:
    """A cluster of `nodes` nodes in a folder; `sbatch` runs a script once, as often as it asks to be requeued."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        (folder / "bin").mkdir(parents=True)
        for name in ("srun", "scontrol"):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} {name} "$@"\n', encoding="utf-8")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()

    def tasks(self) -> list[int]:
        """The process ids of the tasks of the step, which Slurm signals itself."""
        file = self.folder / "tasks"
        return [int(line) for line in file.read_text(encoding="utf-8").split()] if file.exists() else []

    def start(self, script: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Run a batch script for the job's first time, or once more."""
        for name in ("requeued", "tasks"):
            (self.folder / name).unlink(missing_ok=True)
        told = options(script)
        environment = {
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": f"node[1-{self.nodes}]",
            "SLURM_NNODES": str(self.nodes),
            "SLURM_CPUS_PER_TASK": told["cpus-per-task"],
            "SLURM_SUBMIT_DIR": str(script.parents[1]),
            "SLURM_GPUS_ON_NODE": "1",
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_SLURM": str(self.folder),
        }
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=os.environ | environment | variables,
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def options(script: Path) -> dict[str, str]:
    """The #SBATCH lines of a script."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: shlex.split(value)[0] if value else "" for name, value in lines}


def until(ready: Callable[[], bool], seconds: float = 400.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def srun(words: Sequence[str]) -> int:
    """One task per node."""
    folder, command = Path(os.environ["FAKE_SLURM"]), list(words)
    while command[0].startswith("--"):
        command.pop(0)
    tasks: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        for task in tasks:
            task.send_signal(number if number == signal.SIGUSR1 else signal.SIGKILL)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, hand_on)
    for node in range(int(os.environ["SLURM_NNODES"])):
        home = folder / f"node-{node}"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        own = {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0", "TMPDIR": str(home / "tmp")}
        tasks.append(subprocess.Popen(command, env=os.environ | own, cwd=home))
    (folder / "tasks").write_text(" ".join(str(task.pid) for task in tasks), encoding="utf-8")
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(words: Sequence[str]) -> int:
    """`show hostnames` and `requeue`."""
    if words[0] == "requeue":
        assert words[1] == JOB
        (Path(os.environ["FAKE_SLURM"]) / "requeued").touch()
        return 0
    assert words == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    print(*["127.0.0.1"] * int(os.environ["SLURM_NNODES"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
