"""SimGCD on a backbone: one classifier of known and new classes, which learns from two crops of every image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.groups import parted
from unlabeled.nn.curves import Temperature
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.mixing import mix_images
from unlabeled.pretrain.method import Output, Progress, Symptom
from unlabeled.report.card import Made, classifier_card
from unlabeled.transfer.network import head_prefixes
from unlabeled.transfer.simgcd.loss import Head, Losses, taught
from unlabeled.transfer.simgcd.report import MOST
from unlabeled.transfer.simgcd.score import names_of
from unlabeled.transfer.task import Task
from unlabeled.transfer.tasks import classify

ONE_CLUSTER, NO_SPREAD = 95.0, 0.1  # percent; nats


class SimGcd(Task):
    """A backbone with SimGCD's head.

    Args:
        encoder: at the size of the images.
        backbone: what of it learns, and how it pools: a classifier whose own head stays unused.
        clusters: known classes, which are numbered first, and all of them, K.
        head: widths of the MLP for contrast and of its output.
        losses: weights and temperatures.
        teacher: temperature of what one crop teaches the other.
        ratio: unlabelled images for each labelled one of a batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        backbone: classify.Config,
        clusters: tuple[int, int],
        head: tuple[int, int],
        losses: Losses,
        teacher: Temperature,
        ratio: int,
    ) -> None:
        super().__init__()
        self.known, self.classes = clusters
        self.losses, self.teacher, self.ratio = losses, teacher, ratio
        self.architecture, self.family = encoder.model, type(encoder)
        self.classifier = classify.Classifier(encoder, backbone, [1])
        for unused in self.classifier.heads:  # prototypes are in its place
            unused.requires_grad_(False)
        self.head = Head(self.classifier.head.in_features, self.classes, *head)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        self.classifier.wake(progress)
        pixels = batch.views[0].pixels
        features = self.features(pixels.flatten(0, 1))
        logits, projected = (x.unflatten(0, (2, -1)) for x in self._head(features))
        rows = parted(torch.arange(pixels.shape[1], device=pixels.device), (1, self.ratio))[0]
        labels, teacher = batch.labels[rows], self.teacher.at(progress.epoch, progress.total_steps / progress.epochs)
        terms = self.losses.terms(logits, projected, rows, labels, teacher)
        loss = self.losses.total(terms)
        if batch.mix is not None:
            seen, _ = self._head(self.features(mix_images(pixels[0], batch.mix)))
            terms["mixed"] = self.losses.mixed(seen, taught(logits[1], teacher), rows, labels, batch.mix)
            loss = loss + terms["mixed"]
        right = (logits.detach()[:, rows].argmax(-1) == labels).float().mean()
        metrics = {**{name: term.detach() for name, term in terms.items()}, "train_accuracy": 100 * right}
        found = {**metrics, **self.losses.measures(logits.detach())}
        return Output(loss, found, features.detach()[: pixels.shape[1]])

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [B, D] of images [B, C, H, W]."""
        model = self.classifier.model
        found: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return found

    def _head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with exact(features):  # cosines are divided by small temperatures
            found: tuple[Tensor, Tensor] = self.head(wide(features))
            return found

    def predict(self, images: Tensor) -> Tensor:
        """Scores [B, K] of images [B, C, H, W]: logits of known classes, then of new ones."""
        features = self.features(images)
        with exact(features):
            return self.head.logits(wide(features)) / self.losses.student

    def timed(self, images: Tensor) -> Tensor:
        return self.predict(images)

    def batch_statistics(self) -> tuple[str, ...]:
        return "negatives of the batch", "the mean prediction", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        weight = self.losses.memax
        advice = f"Raise task.memax_weight from {weight:g} to {max(1.0, 2 * weight):g}."
        return [
            Symptom(MOST, "one cluster swallows nearly all pictures", advice, at_least=ONE_CLUSTER),
            Symptom("cluster_entropy", "the mean prediction is one cluster: a collapse", advice, at_most=NO_SPREAD),
        ]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return self.classifier.decays(name, parameter)

    def lr_scale(self, name: str) -> float:
        inside = name.removeprefix("classifier.")
        return 1.0 if inside == name else self.classifier.lr_scale(inside)

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        return self.classifier.inactive(progress)

    @torch.no_grad()
    def exported(self) -> dict[str, Tensor]:
        """The state of a plain timm classifier: unit prototypes are its head. Its scores are cosines times the length
        of the features, so that each image has the same order of classes."""
        state = self.classifier.exported()
        for prefix in head_prefixes(self.classifier.model):
            state[f"{prefix}weight"] = F.normalize(self.head.last_layer.weight_v, dim=-1)
            state[f"{prefix}bias"] = state[f"{prefix}bias"].new_zeros(self.classes)
        return state

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        names, inner = names_of(made.classes[: self.known], self.classes), self.classifier
        width = inner.model.num_features
        config = timm_config(self.architecture, inner.arguments, width, prepared, len(names), names)
        loading = self.family.loading(self.architecture, inner.arguments, headed=True)
        write_export(folder, self.exported(), config, classifier_card(made._replace(classes=names), loading))
        return True

    def loaded_by(self, folder: str, whole: bool) -> str:
        return f"  classifier {folder}  ({self.family.loaded_by(self.architecture, folder)})"
