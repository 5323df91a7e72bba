"""Scores of a fine-tuned task on labelled images, and the result: scores with their protocol and cost."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.environment import versions
from unlabeled.errors import UserError
from unlabeled.files import json_lines, write_csv, write_text
from unlabeled.progress import Clock
from unlabeled.report import as_json, markdown
from unlabeled.report.calibration import Reliability
from unlabeled.report.classification import Classification, Outcomes, classification_of
from unlabeled.report.confusion import Confusion
from unlabeled.report.page import page
from unlabeled.report.per_class import MOST_CURVES, auroc
from unlabeled.report.plots import draw_confusion, draw_reliability
from unlabeled.text import spreadsheet
from unlabeled.train.engine import Engine
from unlabeled.transfer.errors import wrong
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.task import Choice, ImageTask
from unlabeled.transfer.task import Scorer as AnyScorer

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "finetune", "version": "1"}
ERRORS = ("picture", "true", "predicted", "probability")


class Scorer:
    """Scores a task on labelled images, once per image, without augmentation; `latest` is the newest result, `outcomes`
    are those of its images, `numbers` [n] these in the source.

    Args:
        source: the images, their classes numbered as the head's.
        train_labels: [n] of the images that were learnt from.
        choice: made before each score; None = there is nothing to choose.

    Raises:
        UserError: there are classes that no training image has.
    """

    def __init__(
        self, predict: Predict, source: Source, train_labels: np.ndarray, choice: Choice | None = None
    ) -> None:
        self.predict, self.source, self.classes, self.choice = predict, source, source.classes, choice
        self.train_counts = class_counts(train_labels, len(self.classes))
        self.latest: dict[str, Any] | None = None
        self.confusion: Confusion
        self.outcomes: Outcomes
        self.numbers: Tensor | None = None
        self.clock = Clock()
        present = class_counts(source.labels, len(self.classes)) > 0
        unseen = [repr(self.classes[i]) for i in (present & (self.train_counts == 0)).nonzero().flatten().tolist()]
        if unseen:
            raise UserError(
                f"data.val has pictures of {', '.join(unseen[:10])}, of which data.train has none. Add some to "
                "data.train, or remove the class from data.val."
            )

    def __call__(self, method: ImageTask) -> dict[str, Any]:
        """Scores in percent as JSON, see `Classification`. All processes must call it."""
        chosen = {}
        if self.choice is not None:
            self.choice(method)
            chosen = {"sweep": self.choice.summary(method)}
        found = self._classify(method)
        report, self.confusion = found.summary(), found.confusion
        self.latest = {**report, "mean_class_accuracy": report["balanced_accuracy"], **chosen}
        return self.latest

    def _classify(self, method: ImageTask) -> Classification:
        """Above so many classes that curves are left out, no logits are kept either."""
        reduce = None if len(self.classes) <= MOST_CURVES else lambda logits, y: Outcomes.of(logits, y).columns()
        scored = self.predict(method.predict, method, self.source, reduce)
        self.outcomes = (Outcomes.of if reduce is None else Outcomes.read)(scored.x, scored.y)
        self.numbers = scored.numbers
        areas = auroc(scored.x, scored.y) if reduce is None else None
        return classification_of(self.outcomes, self.classes, self.train_counts, areas)


def class_counts(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Number of images of each class [C]; labels [n] below 0 are unknown."""
    return torch.from_numpy(np.bincount(labels[labels >= 0], minlength=num_classes))


def write_result(output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
    """Write `result.json`, `result.md`, `errors.csv` and two diagrams; `told` is the recipe as JSON. Raises OSError."""
    assert scorer.latest is not None
    write_errors(output / "errors.csv", scorer)
    content = result_of(told, engine, scorer, scorer.latest)
    report = page(content)
    write_text(output / "result.json", as_json.write(report, compact=True))
    write_text(output / "result.md", markdown.write(report))
    title = f"{told['name']}: {content['accuracy']:.2f} % of {content['pictures']:,} pictures"
    draw_confusion(output / "confusion.png", *scorer.confusion.drawn(scorer.classes), title)
    bins = Reliability(**{name: torch.tensor(values) for name, values in content["reliability"].items()})
    draw_reliability(output / "reliability.png", bins, title)


def write_errors(file: Path, scorer: Scorer) -> None:
    """Write all wrong pictures of the newest score as a table, those of the highest probability first."""
    assert scorer.numbers is not None
    found = [
        (scorer.source.key(one.number), scorer.classes[one.true], scorer.classes[one.predicted], one.probability)
        for one in wrong(scorer.outcomes, scorer.numbers)
    ]
    write_csv(file, ERRORS, ([*map(spreadsheet, names), f"{probability:.6f}"] for *names, probability in found))


def result_of(
    told: dict[str, Any], engine: Engine, scorer: AnyScorer, result: dict[str, Any], protocol: dict[str, str] = PROTOCOL
) -> dict[str, Any]:
    """A result with its protocol, its seeds and its cost."""
    source, facts, task = engine.job.dataset.source, engine.job.facts, told["task"]
    unlabelled = int((source.labels < 0).sum())
    return {
        **result,
        "classes": dict(enumerate(source.classes)),
        "protocol": {
            **protocol,
            **{name: told[name] for name in ("encoder", "task", "optim", "train")},
            "label_fraction": task["fraction"],
            "labelled_pictures": int((source.labels >= 0).sum()),
            **({"unlabelled_pictures": unlabelled} if unlabelled else {}),
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
