"""What a run writes about itself for its page: `plan.json`, how it ended, and the page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from unlabeled.environment import versions
from unlabeled.errors import Stopped, first_line
from unlabeled.files import write_text
from unlabeled.launch.plan import Line
from unlabeled.page.writing import PageWriter
from unlabeled.progress import duration
from unlabeled.train.engine import Engine


@contextmanager
def recorded(engine: Engine, lines: Sequence[Line]) -> Iterator[None]:
    """Keep the page of a run as long as it is entered, where its recipe wants one; `lines` are those of its plan."""
    wanted = engine.job.recipe.run.page and engine.accelerator.is_main_process
    if engine.accelerator.is_main_process:
        try:
            write_text(engine.output / "plan.json", json.dumps(_plan(engine, lines)))
        except OSError as error:  # a run is worth more than its page
            engine.tell(f"plan.json cannot be written: {error.strerror}. The run goes on without it.")
    writer = PageWriter(engine.output, engine.display.say) if wanted else None
    with writer or nullcontext():
        if writer is not None:
            engine.events.heard = writer.wake
        try:
            yield
        except BaseException as error:
            engine.events.end(engine.step, first_line(error), "stopped" if isinstance(error, Stopped) else "failed")
            raise
        taken = f"{engine.step:,} steps, {engine.skipped} skipped, {len(engine.bad.keys)} bad pictures"
        engine.events.end(engine.step, f"done in {duration(engine.clock.seconds)}: {taken}", "ended")


def _plan(engine: Engine, lines: Sequence[Line]) -> dict[str, Any]:
    """Its healthy values are those between the ones by which the method's collapses are known."""
    return {
        "steps": engine.total_steps,
        "first_step": engine.step,
        "started": time.time(),
        "lines": list(lines),
        "versions": versions(),
        "bands": {
            symptom.metric: {
                "low": _bound(symptom.at_most),
                "high": _bound(symptom.at_least),
                "text": f"Outside: {symptom.meaning}.",
            }
            for symptom in engine.method.symptoms()
        },
    }


def _bound(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
