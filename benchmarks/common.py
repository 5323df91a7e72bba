"""What the benchmarks share: options, fair turns, the machine's peak, a table and one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F

from unlabeled.accelerator import settle
from unlabeled.files import write_text
from unlabeled.report import markdown
from unlabeled.report.document import Table
from unlabeled.report.intervals import estimate

THREADS = 2

# (rows, in, out): square ones, and those that a ViT's linear layers have
PRODUCTS = ((2048, 2048, 2048), (1576, 512, 2048), (1576, 2048, 512), (1576, 512, 512), (400, 384, 1536))


def options(
    description: str, rounds: int, arguments: Sequence[str] | None = None, methods: Sequence[str] = ()
) -> argparse.Namespace:
    """`--json`, `--rounds N`, `--threads N`, and `--methods a,b` where there are methods to choose from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each contender (default {rounds})")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads (default {THREADS})")
    if methods:
        everything = ",".join(methods)
        parser.add_argument("--methods", default=everything, help=f"which, by name (default {everything})")
    chosen = parser.parse_args(arguments)
    if methods:
        chosen.methods = picked(parser, chosen.methods, methods)
    return chosen


def picked(parser: argparse.ArgumentParser, text: str, methods: Sequence[str]) -> list[str]:
    """The methods of a comma-separated list, which must exist."""
    names = text.split(",")
    unknown = sorted(set(names) - set(methods))
    if unknown:
        parser.error(f"no method {', '.join(unknown)}: choose from {','.join(methods)}")
    return names


def on_one_core(description: str, pictures: int, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """`DATA`, `--pictures N`, `--rounds N` and `--json`; from here on the program keeps to one core and one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", help="a tar or a folder of pictures of ordinary size")
    parser.add_argument("--pictures", type=int, default=pictures, help=f"how many of them (default {pictures})")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    settle(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return chosen


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_peak(repeats: int = 4) -> float:
    """The most GFLOP/s that float32 `F.linear` reaches now, over several sizes."""
    best = 0.0
    for rows, inside, outside in PRODUCTS:
        x, weight = torch.ones(rows, inside), torch.ones(outside, inside)
        fastest = min(seconds(lambda x=x, weight=weight: F.linear(x, weight)) for _ in range(repeats))  # type: ignore[misc]
        best = max(best, 2 * rows * inside * outside / fastest / 1e9)
    return best


def forget_peak_memory() -> None:
    """Begin a new peak of resident memory, where the kernel can (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


def peak_memory_mb() -> float:
    """The most resident memory of this process, MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> str:
    """One line about where the figures come from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        )
        model = next(names, model)
    return f"{model}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, to be read on a terminal and kept in notes."""
    return markdown.table(Table(head, rows)).rstrip("\n")


class Results:
    """What is known so far, in a file that is rewritten after every piece; threads may share it."""

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, Lock()
        self.found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.found

    def add(self, key: str, value: Any) -> None:
        """Keep one piece."""
        with self.lock:
            self.found[key] = value
            write_text(self.file, json.dumps(self.found, indent=1))
            print(key, json.dumps(value), flush=True)


def once(output: Path, program: str, recipe: str, *settings: str) -> dict[str, Any]:
    """The result of a program of ours on one thread that also loads the pictures; a run that is there is not run
    again, one that was stopped goes on. What it prints goes to the file `output.log` beside its folder."""
    file = output / "result.json"
    if not file.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "unlabeled", program, recipe, *settings, f"run.output={output}"]
        with open(f"{output}.log", "a", encoding="utf-8") as log:
            done = subprocess.run(
                [*command, "run.threads=1", "run.workers=0"],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: see {output}.log")
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def over(values: Sequence[float], digits: int = 1) -> str:
    """A mean with its spread, where there are several values."""
    return estimate(mean(values), stdev(values) if len(values) > 1 else None, digits=digits)


def finish(chosen: argparse.Namespace, result: dict[str, Any]) -> None:
    """The last line, when asked for."""
    if chosen.json:
        print(json.dumps(result))


__all__ = [
    "THREADS",
    "Results",
    "finish",
    "forget_peak_memory",
    "machine",
    "matmul_peak",
    "median",
    "on_one_core",
    "once",
    "options",
    "over",
    "peak_memory_mb",
    "picked",
    "seconds",
    "table",
]
