"""What fine-tuning exports: a classifier that timm loads, or a backbone with a linear head beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.backbone.pooling import in_python
from unlabeled.pretrain.method import Method
from unlabeled.report.card import classifier_card, head_card
from unlabeled.transfer.classify import Classifier
from unlabeled.transfer.sweep import LinearSweep


def export_result(folder: Path, method: Method, recipe: Any, engine: Any, result: dict[str, Any]) -> bool:
    """What was learnt as a timm folder: a classifier, or a backbone and a head that timm's classifiers do not have.
    Returns whether it is a classifier.

    Raises:
        UserError: it cannot be written; an earlier one stays as it was.
    """
    if isinstance(method, LinearSweep):
        whole = method.as_classifier()
        if whole is None:
            export_head(folder, method, recipe, engine, result)
            return False
        method = whole
    assert isinstance(method, Classifier)
    export_classifier(folder, method, recipe, engine, result)
    return True


def export_head(folder: Path, method: LinearSweep, recipe: Any, engine: Any, result: dict[str, Any]) -> None:
    """The backbone as a timm folder, and a linear head on features that timm's classifiers do not read."""
    encoder, head = method.encoder, method.heads[method.chosen]
    prepared = Preprocessing.of(recipe.data, recipe.task.crop_pct, recipe.task.evaluated_with)
    config = timm_config(encoder.model, encoder.arguments, encoder.width, prepared)
    kind, classes = method.tried[method.chosen].kind, engine.job.dataset.source.classes
    config["linear_head"] = {**kind._asdict(), "label_names": list(classes)}
    card = head_card(recipe, engine, result, kind.pool, kind.blocks, in_python(encoder, kind))
    write_export(folder, dict(encoder.vit.state_dict()), config, card, dict(head.state_dict()))


def export_classifier(folder: Path, method: Classifier, recipe: Any, engine: Any, result: dict[str, Any]) -> None:
    """The classifier as a timm folder with its classes' names."""
    classes = engine.job.dataset.source.classes
    prepared = Preprocessing.of(recipe.data, recipe.task.crop_pct, recipe.task.evaluated_with)
    config = timm_config(
        method.architecture, method.arguments, method.model.num_features, prepared, len(classes), classes
    )
    write_export(folder, method.exported(), config, classifier_card(recipe, engine, result))
