"""What came out of fine-tuning: scores, with their protocol and cost beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import preprocessing_of
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Encode, Features, extract
from unlabeled.files import json_lines, write_text
from unlabeled.nn.modes import evaluating
from unlabeled.pretrain.method import Method
from unlabeled.report import as_json, markdown
from unlabeled.report.calibration import Reliability
from unlabeled.report.card import versions
from unlabeled.report.classification import Classification, Outcomes, classification, classification_of
from unlabeled.report.clock import Clock
from unlabeled.report.confusion import Confusion
from unlabeled.report.page import page
from unlabeled.report.per_class import MOST_CURVES
from unlabeled.transfer.classify import Classifier

if TYPE_CHECKING:
    from unlabeled.transfer.choice import Choice
    from unlabeled.transfer.sweep import LinearSweep

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "finetune", "version": "1"}


class Scorer:
    """Scores a classifier on labelled pictures, once per picture, without augmentation.

    `latest` holds the newest result, None before the first.

    Args:
        recipe: of the fine-tuning.
        accelerator: device and processes.
        source: the pictures, their classes numbered as the head's.
        train_labels: [n] of the pictures that were learnt from.
        choice: of one of many heads, which is made before each score; None = there is nothing to choose.

    Raises:
        UserError: there are classes that no training picture has.
    """

    def __init__(
        self,
        recipe: Any,
        accelerator: Accelerator,
        source: Source,
        train_labels: np.ndarray,
        choice: Choice | None = None,
    ) -> None:
        self.recipe, self.accelerator, self.source, self.classes = recipe, accelerator, source, source.classes
        self.choice = choice
        self.train_counts = class_counts(train_labels, len(self.classes))
        self.latest: dict[str, Any] | None = None
        self.confusion: Confusion
        self.clock = Clock()
        _check_trained(self.source.labels, self.train_counts, self.classes)

    def __call__(self, method: Classifier | LinearSweep) -> dict[str, Any]:
        """Scores in percent as JSON, see `Classification`. All processes must call it."""
        chosen = {}
        if self.choice is not None:
            self.choice(method)  # type: ignore[arg-type]
            chosen = {"sweep": self.choice.summary(method)}  # type: ignore[arg-type]
        found = self._classify(method)
        report, self.confusion = found.summary(), found.confusion
        self.latest = {**report, "mean_class_accuracy": report["balanced_accuracy"], **chosen}
        return self.latest

    def _classify(self, method: Classifier | LinearSweep) -> Classification:
        """Above so many classes that curves are left out, no logits are kept either."""
        reduce = None if len(self.classes) <= MOST_CURVES else lambda logits, y: Outcomes.of(logits, y).columns()
        scored = predict_all(method.predict, method, self.recipe, self.accelerator, self.source, reduce)
        if reduce is None:
            return classification(scored.x, scored.y, self.classes, self.train_counts)
        return classification_of(Outcomes.read(scored.x, scored.y), self.classes, self.train_counts)


def predict_all(
    encode: Encode,
    method: Method,
    recipe: Any,
    accelerator: Accelerator,
    source: Source,
    reduce: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Features:
    """What `encode`, which runs `method`, makes of the pictures of a source, prepared as in evaluation.

    `reduce` says what is kept of it, see `extract`.
    """
    task, device = recipe.task, accelerator.device
    with torch.no_grad(), evaluating(method):
        return extract(
            encode,
            source,
            shape=task.view.shape,
            crop_pct=task.crop_pct,
            interpolation=task.evaluated_with,
            normalize=Normalize(recipe.data.mean, recipe.data.std, device),
            device=device,
            workers=recipe.run.workers,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            timeout=recipe.run.timeout,
            reduce=reduce,
        )


def class_counts(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """How many pictures each class has [C]; labels [n] below 0 are unknown."""
    return torch.from_numpy(np.bincount(labels[labels >= 0], minlength=num_classes))


def write_result(output: Path, engine: Any, scorer: Scorer) -> None:
    """`result.json`, the numbers and everything needed to believe them; `result.md` and two diagrams of the same.

    Args:
        output: the run's folder.
        engine: at the end of its run.
        scorer: that has scored.

    Raises:
        OSError: they cannot be written.
    """
    from unlabeled.report.plots import draw_confusion, draw_reliability

    assert scorer.latest is not None
    content = result_of(engine, scorer, scorer.latest)
    report = page(content)
    write_text(output / "result.json", as_json.write(report))
    write_text(output / "result.md", markdown.write(report))
    title = f"{scorer.recipe.name}: {content['accuracy']:.2f} % of {content['pictures']:,} pictures"
    draw_confusion(output / "confusion.png", *scorer.confusion.drawn(scorer.classes), title)
    bins = Reliability(**{name: torch.tensor(values) for name, values in content["reliability"].items()})
    draw_reliability(output / "reliability.png", bins, title)


def result_of(engine: Any, scorer: Scorer, result: dict[str, Any]) -> dict[str, Any]:
    """A result with its protocol, its seeds and what it cost."""
    recipe, source, facts = scorer.recipe, engine.job.dataset.source, engine.job.facts
    return {
        **result,
        "classes": dict(enumerate(source.classes)),
        "protocol": {
            **PROTOCOL,
            "encoder": recipe.encoder,
            "task": recipe.task.model_dump(mode="json"),
            "optim": recipe.optim.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
            "label_fraction": recipe.task.fraction,
            "labelled_pictures": len(source),
            "weights_of_step": engine.checkpoints.best or engine.step,
            "watch": None if recipe.watch is None else recipe.watch.model_dump(mode="json"),
            "data": recipe.data.model_dump(mode="json"),
            "fingerprint": facts["pictures"],
            "fingerprints": {
                "encoder": facts["encoder"],
                "train": facts["pictures"],
                "val": scorer.source.fingerprint(),
            },
        },
        "seed": recipe.seed,
        "seeds": {"run": recipe.seed, "labels": recipe.task.fraction_seed},
        "steps": engine.step,
        "cost": cost(engine, scorer.clock),
        "versions": versions(),
    }


def cost(engine: Any, clock: Clock) -> dict[str, Any]:
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


def _check_trained(labels: np.ndarray, train_counts: torch.Tensor, classes: Sequence[str]) -> None:
    evaluated = class_counts(labels, len(classes))
    unseen = [repr(classes[i]) for i in ((evaluated > 0) & (train_counts == 0)).nonzero().flatten().tolist()]
    if unseen:
        raise UserError(
            f"data.val has pictures of {', '.join(unseen[:10])}, of which data.train has none. Add some to data.train, "
            "or remove the class from data.val."
        )


def check_preprocessing(recipe: Any) -> None:
    """Raise UserError when the backbone was pretrained on pixels scaled or normalised otherwise."""
    prepared = preprocessing_of(recipe.encoder)
    theirs, ours = (tuple(prepared.mean), tuple(prepared.std)), (recipe.data.mean, recipe.data.std)
    # a mean of other channels cannot be the same: whether they may be fitted is another question, see `check_fits`
    if theirs != ours and len(prepared.mean) == recipe.data.channels:
        raise UserError(
            f"the encoder was pretrained with mean {theirs[0]} and std {theirs[1]}, the recipe says {ours[0]} and "
            f"{ours[1]}. Set data.mean and data.std to the encoder's."
        )
    scaled = Preprocessing.of(recipe.data, 1.0).value_range
    if prepared.value_range != (None if scaled is None else list(scaled)):
        raise UserError(
            f"the encoder was pretrained with a value_range of {prepared.value_range}, the recipe says {scaled}. Set "
            "data.value_range to the encoder's."
        )
