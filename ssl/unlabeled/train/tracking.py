"""What a run says while it goes: metrics.jsonl, trackers, and one line or a bar on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.files import replacing
from unlabeled.train.distributed import on_main, total

if TYPE_CHECKING:
    from accelerate import Accelerator

Values = Mapping[str, float]


class MetricsFile:
    """`metrics.jsonl`: one JSON object per logged step, appended.

    Args:
        file: where.
        step: the step a run goes on from; later lines, of a run that was killed, are dropped.
    """

    def __init__(self, file: Path, step: int) -> None:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines) or not lines:
            with replacing(file) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = open(file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, step: int, values: Values) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Waits(Protocol):
    """Something whose total waiting time, in seconds, can be read."""

    waited: float


class Meter:
    """Speed since the last reading: images per second and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.seconds_per_step, self.images, self.steps = 0.0, 0, 0

    def reset(self, feed: Waits) -> None:
        """Begin a new interval."""
        self.started, self.waited, self.images, self.steps = time.perf_counter(), feed.waited, 0, 0

    def count(self, images: int) -> None:
        """One step of so many images is done."""
        self.images += images
        self.steps += 1

    def pause(self, seconds: float) -> None:
        """Leave out time that was spent on something else."""
        self.started += seconds

    def read(self, feed: Waits) -> dict[str, float]:
        """`images_per_s` and `data_wait` in [0, 1]; begins a new interval."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        waited = feed.waited - self.waited
        speed = {"images_per_s": round(self.images / elapsed, 1), "data_wait": round(waited / elapsed, 4)}
        self.seconds_per_step = elapsed / max(1, self.steps)
        self.reset(feed)
        return speed


class Averages:
    """Means of what micro-batches report, summed on the device and read only when they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One micro-batch's scalars."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over micro-batches and processes since the last reading; empty if there was none."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].float() for name in names]) / self._count
        means = total(accelerator, means) / accelerator.num_processes
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


class Display:
    """A progress bar on a terminal, plain lines elsewhere, nothing on any process but the main one.

    Args:
        name: of the run.
        total: steps of the whole run.
        epochs: of the whole run.
        active: whether this process speaks.
    """

    def __init__(self, name: str, total: int, epochs: float, active: bool) -> None:
        self.total, self.epochs, self.active = total, epochs, active
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
        )
        self.bar = Progress(*columns, console=self.console) if active and self.console.is_terminal else None
        self.task = self.bar.add_task(name, total=total, line="starting") if self.bar else None

    def __enter__(self) -> Display:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        """One line for a person."""
        if self.active:
            self.console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def show(self, step: int, epoch: float, values: Values, seconds_per_step: float) -> None:
        """The values of a logged step."""
        left = duration((self.total - step) * seconds_per_step)
        line = (
            f"epoch {epoch:.1f}/{self.epochs:g}  loss {values['loss']:.4f}  {values['images_per_s']:,.0f} img/s  "
            f"data {100 * values['data_wait']:.0f} %  {left} left"
        )
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, line=line)
        else:
            self.say(f"step {step}/{self.total}  {line}")


class Trackers:
    """Accelerate's trackers (TensorBoard, MLflow), any number at once. What fails later is said once and switched off.

    Args:
        accelerator: made with the trackers' names.
        name, recipe: of the run.
        say: tells a person.

    Raises:
        UserError: one cannot be started.
    """

    def __init__(
        self, accelerator: Accelerator, name: str, recipe: BaseModel, say: Callable[[str], None] = print
    ) -> None:
        self.accelerator, self.say, self.active = accelerator, say, bool(accelerator.log_with)
        on_main(accelerator, lambda: self._start(name, recipe))

    def _start(self, name: str, recipe: BaseModel) -> None:
        if not self.active:
            return
        try:
            self.accelerator.init_trackers(name, config={k: str(v) for k, v in flatten(recipe.model_dump()).items()})
        except Exception as error:  # a server, a database, a package that is half there: the person must hear it
            named = " and ".join(map(str, self.accelerator.log_with))
            raise UserError(
                f"cannot start {named}: {error}. Mend it (MLflow reads MLFLOW_TRACKING_URI), or set run.trackers=[]."
            ) from error

    def log(self, step: int, values: Values) -> None:
        """Send one step's values."""
        self._try(lambda: self.accelerator.log(dict(values), step=step))

    def close(self) -> None:
        """Flush and end."""
        self._try(self.accelerator.end_training)

    def _try(self, action: Callable[[], None]) -> None:
        if not self.active:
            return
        try:
            action()
        except Exception as error:  # a server that is gone must not end a run of days
            self.active = False
            self.say(f"trackers are switched off: {error}. metrics.jsonl goes on.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h, 2.1 d."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _step_of(line: str) -> float:
    # a line cut short by a crash belongs to no step
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
