"""Logs of a run: metrics.jsonl, a line or a bar on the terminal, and warnings about failures in them."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled import progress
from unlabeled.data.batch.loader import Feed
from unlabeled.errors import UserError
from unlabeled.files import end_line, json_object
from unlabeled.pretrain.method import Symptom
from unlabeled.processes import total
from unlabeled.progress import Bars, duration

Values = Mapping[str, float]
TAIL = 1 << 18  # bytes read at a time, from the end
STALE = 60.0  # seconds between two lines of progress
# a new network looks like a collapsed one: the first part of a run, and its first steps, are left out
GRACE, GRACE_STEPS = 0.1, 50
READINGS = 3  # in a row that must show a symptom


class MetricsFile:
    """`metrics.jsonl`: one JSON object per logged step, appended. Raises UserError where it cannot be written.

    Later lines than those of `step`, of a run that was killed, and broken ones at the end are dropped.
    """

    def __init__(self, file: Path, step: int) -> None:
        try:
            cut_back(file, step)
            self._file = open(file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise UserError(
                f"{file} cannot be written: {error.strerror or error}. Move it away, or make it writable."
            ) from error

    def write(self, step: int, values: Values) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


def scores_at(file: Path, step: int) -> dict[str, float]:
    """Evaluation scores of a step, from the end of `metrics.jsonl`; empty if there are none."""
    with open(file, "rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL))
        lines = opened.read().splitlines()
    said = [json_object(line) for line in lines if _step_of(line) == step]
    # other lines of a step are its loss and a watched score
    scores = [line for line in said if "loss" not in line and not any(name.startswith("watched_") for name in line)]
    return {name: value for line in scores for name, value in line.items() if name != "step"}


class Meter:
    """Speed since the last reading: images per second and the share of time spent waiting for data, in [0, 1]."""

    def __init__(self) -> None:
        self.seconds_per_step, self.images, self.steps = 0.0, 0, 0

    def reset(self, feed: Feed) -> None:
        self.started, self.waited, self.images, self.steps = time.perf_counter(), feed.waited, 0, 0

    def count(self, images: int) -> None:
        self.images += images
        self.steps += 1

    @property
    def pace(self) -> float:
        """Seconds per step: of the last reading, before the first one of the steps so far."""
        return self.seconds_per_step or (time.perf_counter() - self.started) / max(1, self.steps)

    def pause(self, seconds: float) -> None:
        """Leave out time spent on something else."""
        self.started += seconds

    def read(self, feed: Feed) -> dict[str, float]:
        """`images_per_s` and `data_wait` in [0, 1]; begins a new interval."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        self.seconds_per_step = elapsed / max(1, self.steps)
        images, share = self.images / elapsed, (feed.waited - self.waited) / elapsed
        self.reset(feed)
        return {"images_per_s": round(images, 1), "data_wait": round(share, 4)}


class Averages:
    """Means of the scalars of micro-batches, summed on the device and read only for logging."""

    def __init__(self) -> None:
        self._sums, self._count = dict[str, Tensor](), 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over micro-batches and processes since the last reading; empty if there were none."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].float() for name in names]) / self._count
        means = total(accelerator, means) / accelerator.num_processes
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


class Display:
    """A progress bar on a terminal, lines elsewhere, of a run of `total` steps and `epochs`; prints where `active`."""

    def __init__(self, name: str, total: int, epochs: float, active: bool) -> None:
        self.name, self.total, self.epochs = name, total, epochs
        self.bars, self.speed = progress.current() or Bars(active), ""  # the speed of the newest logged step

    def __enter__(self) -> Display:
        self.bars.__enter__()
        self.task = progress.task(self.name, self.total)
        self.task.show("starting")
        return self

    def __exit__(self, *_: object) -> None:
        self.task.close(keep=True)
        self.bars.__exit__()

    def say(self, text: str) -> None:
        self.bars.say(text)

    def show(self, step: int, epoch: float, loss: float, seconds_per_step: float, speed: str = "") -> None:
        """Show progress after a step: on a bar; as a line with `speed`, for the first step, and once a minute."""
        first, self.speed = self.task.done == 0, speed or self.speed
        self.task.done = step
        left = f"{duration((self.total - step) * seconds_per_step)} left"
        epochs, loss_now = f"epoch {epoch:.1f}/{self.epochs:g}", f"loss {loss:.4f}"
        if self.bars.progress:  # a narrow terminal shows the first parts
            self.task.show("  ".join(filter(None, [loss_now, left, epochs, self.speed])))
        elif first or speed or self.bars.due(STALE):
            self.say("  ".join(filter(None, [f"step {step}/{self.total}", epochs, loss_now, self.speed, left])))


class Diagnosis:
    """Warns, once per run, of each of a method's `symptoms` that holds for `READINGS` logged readings in a row."""

    def __init__(self, symptoms: Iterable[Symptom], total_steps: int, say: Callable[[str], None]) -> None:
        self.total_steps, self.say = total_steps, say
        self._since: dict[Symptom, list[int]] = {symptom: [] for symptom in symptoms}

    def read(self, step: int, values: Mapping[str, float]) -> None:
        """Check the averages logged at a step."""
        if step < max(GRACE * self.total_steps, GRACE_STEPS):
            return
        for symptom, since in list(self._since.items()):
            value = values.get(symptom.metric, math.nan)  # a metric that is missing or not a number shows nothing
            if not (value <= symptom.at_most or value >= symptom.at_least):
                since.clear()
                continue
            since.append(step)
            if len(since) == READINGS:
                del self._since[symptom]
                found = f"{symptom.metric} {value:.4g} since step {since[0]}"
                self.say(f"warning: {symptom.meaning} ({found}). {symptom.advice}")


def cut_back(file: Path, step: int) -> None:
    """Drop the lines of later steps than `step`, and broken ones at the end, of a file of JSON lines; make it if there
    is none."""
    with open(file, "ab+") as found:
        found.truncate(_end_of(found, step))
        end_line(found)


def _end_of(file: BinaryIO, step: int) -> int:
    """Offset of the end of the last readable line up to `step`. Reads backwards, as steps ascend."""
    end = file.seek(0, os.SEEK_END)
    while end > 0 and step > 0:
        start = max(0, end - TAIL)
        file.seek(start)
        block = file.read(end - start)
        first = block.find(b"\n", 0, -1) + 1 if start else 0  # the line before it began in an earlier block
        lines, position = block[first:].splitlines(keepends=True), end
        later = step < _step_of(lines[0]) < math.inf
        for line in [] if later else reversed(lines):
            if _step_of(line) <= step:
                return position
            position -= len(line)
        end = start + first
    return 0


def _step_of(line: bytes) -> float:
    """The step of a line; infinite where it cannot be read."""
    step = json_object(line).get("step")
    return step if isinstance(step, int) else math.inf
