"""What came out of fine-tuning: accuracy, its protocol beside it, and a classifier that timm loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from unlabeled.card import classifier_card, versions
from unlabeled.data.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluate.features import evaluating, extract
from unlabeled.export import Preprocessing, preprocessing_of, timm_config, write_export
from unlabeled.transfer.classify import Classifier


class Scorer:
    """Top-1 accuracy of a classifier on `data.val`, once per picture, without augmentation.

    `latest` holds the newest result, None before the first.

    Args:
        recipe: of the fine-tuning.
        accelerator: device and processes.
        source: labelled pictures, whose classes are numbered as the head's.
        train_labels: [n] of the pictures that were learnt from.
    """

    def __init__(self, recipe: Any, accelerator: Accelerator, source: Source, train_labels: np.ndarray) -> None:
        self.recipe, self.accelerator, self.source, self.train_labels = recipe, accelerator, source, train_labels
        self.classes = source.classes
        self.latest: dict[str, Any] | None = None

    def __call__(self, method: Classifier) -> dict[str, Any]:
        """Accuracy in percent, overall and per class. All processes must call it."""
        recipe, device = self.recipe, self.accelerator.device
        with torch.no_grad(), evaluating(method):
            scored = extract(
                method.predict,
                self.source,
                shape=recipe.task.view.shape,
                crop_pct=recipe.task.crop_pct,
                interpolation=recipe.task.evaluated_with,
                normalize=Normalize(recipe.data.mean, recipe.data.std, device),
                device=device,
                workers=recipe.run.workers,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
            )
        correct = (scored.x.argmax(1) == scored.y).float()
        per_class = {
            name: round(100 * correct[scored.y == i].mean().item(), 3)
            for i, name in enumerate(self.classes)
            if (scored.y == i).any()
        }
        self.latest = {
            "accuracy": 100 * correct.mean().item(),
            "mean_class_accuracy": sum(per_class.values()) / len(per_class),
            "per_class": per_class,
            "pictures": len(correct),
        }
        return self.latest


def write_result(file: Path, recipe: Any, engine: Any, result: dict[str, Any]) -> None:
    """`result.json`: the numbers and everything needed to believe them."""
    source = engine.job.dataset.source
    content = {
        **result,
        "classes": dict(enumerate(source.classes)),
        "protocol": {
            "encoder": recipe.encoder,
            "task": recipe.task.model_dump(mode="json"),
            "optim": recipe.optim.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
            "label_fraction": recipe.task.fraction,
            "labelled_pictures": len(source),
            "epoch": "last",
            "data": recipe.data.model_dump(mode="json"),
            "fingerprint": engine.job.facts["pictures"],
        },
        "seed": recipe.seed,
        "steps": engine.step,
        "versions": versions(),
    }
    temporary = file.with_suffix(".writing")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, file)


def export_classifier(folder: Path, method: Classifier, recipe: Any, engine: Any, result: dict[str, Any]) -> None:
    """The classifier as a timm folder with its classes' names."""
    classes = engine.job.dataset.source.classes
    prepared = Preprocessing.of(recipe.data, recipe.task.crop_pct, recipe.task.evaluated_with)
    config = timm_config(
        method.architecture, method.arguments, method.model.num_features, prepared, len(classes), classes
    )
    write_export(folder, method.exported(), config, classifier_card(recipe, engine, result))


def check_preprocessing(recipe: Any) -> None:
    """Raise UserError when the backbone was pretrained on pixels scaled or normalised otherwise."""
    prepared = preprocessing_of(recipe.encoder.removeprefix("scratch:"))
    if prepared is None:
        return
    theirs, ours = (tuple(prepared.mean), tuple(prepared.std)), (recipe.data.mean, recipe.data.std)
    if theirs != ours:
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
