"""Everything that only a GPU can tell, by one command in at most nine minutes.

    python benchmarks/gpu.py [--out runs/gpu.json] [--seconds 540] [--parts steps waits] [--dry]

Each part is a file of `gpu_parts/` and has its own limit of time; a part that fails or takes too long is noted, and the
next one begins. The file `--out` is rewritten after every figure, so that nothing is lost where the machine goes away.
The last thing printed is a table. `--dry` runs every part on the CPU with small sizes, to see that all of it works: its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need, before CUDA starts

import torch
from common import machine, table
from gpu_parts import PARTS, Part, Place, part

from unlabeled.files import write_text

ENOUGH = 5.0  # seconds that a part needs to be begun at all
PATIENT = 5  # times the limit of a part, in a dry run on a busy CPU


class Report:
    """The figures of all parts so far, in a file that is rewritten after every one."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, dict[str, dict[str, Any]]()

    def add(self, name: str, key: str, value: Any) -> None:
        """Keep a figure of a part."""
        self.found.setdefault(name, {})[key] = value
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self.found, indent=1))
        print(f"{name}  {key}  {json.dumps(value)}", flush=True)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """One row of the table for each figure."""
        for name, figures in self.found.items():
            for key, value in figures.items():
                yield name, key, "  ".join(shown(value))


def shown(value: Any) -> Iterator[str]:
    """A figure in a table: numbers with three digits, objects by their names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{key} {' '.join(shown(inner))}"
    else:
        yield f"{value:,.3g}" if isinstance(value, float) else str(value)


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what runs within, after so many seconds."""

    def late(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, one: Part, place: Place, report: Report, left: float) -> None:
    """Run one part; whatever goes wrong in it is a figure like others."""
    started, seconds = time.perf_counter(), min(left, one.seconds * (PATIENT if place.dry else 1))
    try:
        with limit(seconds):
            for key, value in one.measure(place):
                report.add(name, key, value)
    except Exception as error:
        traceback.print_exc()
        report.add(name, "failed", f"{type(error).__name__}: {error}"[:500])
    report.add(name, "took", round(time.perf_counter() - started, 1))
    if place.cuda:
        torch.cuda.empty_cache()


def about(device: torch.device) -> dict[str, Any]:
    """The machine, the driver and the versions that figures belong to."""
    known: dict[str, Any] = {"machine": machine(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": str(torch.version.cuda)}
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts in their order while there is time, then print the table."""
    parser = argparse.ArgumentParser(description="Everything that only a GPU can tell.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="figures (default runs/gpu.json)")
    parser.add_argument("--seconds", type=float, default=540, help="for everything (default 540)")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS, help="which (default all)")
    parser.add_argument("--dry", action="store_true", help="on the CPU with small sizes: figures mean nothing")
    chosen = parser.parse_args(arguments)
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU; --dry runs every part on the CPU")
    device = torch.device("cpu" if chosen.dry else "cuda")
    report, ends = Report(chosen.out), time.perf_counter() + chosen.seconds
    for key, value in about(device).items():
        report.add("about", key, value)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, chosen.dry, Path(folder))
        for name in chosen.parts:
            if (left := ends - time.perf_counter()) < ENOUGH:
                report.add(name, "failed", "no time was left")
                continue
            run(name, part(name), place, report, left)
    print(table(("part", "figure", "value"), list(report.rows())))


if __name__ == "__main__":
    main()
