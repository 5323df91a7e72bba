"""The result of a fine-tuning: scores, with their protocol and cost beside them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from unlabeled.environment import versions
from unlabeled.files import json_lines, write_text
from unlabeled.progress import Clock
from unlabeled.report import as_json, markdown
from unlabeled.report.calibration import Reliability
from unlabeled.report.page import page
from unlabeled.report.plots import draw_confusion, draw_reliability
from unlabeled.train.engine import Engine
from unlabeled.transfer.score import Scorer

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "finetune", "version": "1"}


def write_result(output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
    """Write `result.json`, `result.md` and two diagrams; `told` is the recipe as JSON. Raises OSError."""
    assert scorer.latest is not None
    content = result_of(told, engine, scorer, scorer.latest)
    report = page(content)
    write_text(output / "result.json", as_json.write(report))
    write_text(output / "result.md", markdown.write(report))
    title = f"{told['name']}: {content['accuracy']:.2f} % of {content['pictures']:,} pictures"
    draw_confusion(output / "confusion.png", *scorer.confusion.drawn(scorer.classes), title)
    bins = Reliability(**{name: torch.tensor(values) for name, values in content["reliability"].items()})
    draw_reliability(output / "reliability.png", bins, title)


def result_of(told: dict[str, Any], engine: Engine, scorer: Scorer, result: dict[str, Any]) -> dict[str, Any]:
    """A result with its protocol, its seeds and its cost."""
    source, facts, task = engine.job.dataset.source, engine.job.facts, told["task"]
    return {
        **result,
        "classes": dict(enumerate(source.classes)),
        "protocol": {
            **PROTOCOL,
            **{name: told[name] for name in ("encoder", "task", "optim", "train")},
            "label_fraction": task["fraction"],
            "labelled_pictures": len(source),
            "weights_of_step": engine.checkpoints.best or engine.step,
            "watch": told["watch"],
            "data": told["data"],
            "fingerprint": facts["pictures"],
            "fingerprints": {
                "encoder": facts["encoder"],
                "train": facts["pictures"],
                "val": scorer.source.fingerprint(),
            },
        },
        "seed": told["seed"],
        "seeds": {"run": told["seed"], "labels": task["fraction_seed"]},
        "steps": engine.step,
        "cost": cost(engine, scorer.clock),
        "versions": versions(),
    }


def cost(engine: Engine, clock: Clock) -> dict[str, Any]:
    """Seconds of the process that finished the run, since the step it went on from; images/s is the logged median."""
    lines = json_lines(engine.output / "metrics.jsonl")
    speeds = [speed for line in lines if isinstance(speed := line.get("images_per_s"), float)]
    return {
        "wall_s": round(clock.seconds, 2),
        "cpu_s": round(clock.cpu_seconds, 2),
        "from_step": engine.first_step,
        "steps": engine.step,
        "images_per_s": statistics.median(speeds) if speeds else None,
        "processes": engine.accelerator.num_processes,
        "device": str(engine.device),
    }
