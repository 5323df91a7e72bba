"""A classifier that grows: it learns the classes of one task by a strategy, beside those that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.groups import parted
from unlabeled.incremental.maps import stage_maps
from unlabeled.incremental.strategy import HEAD, Balanced, Coming, Kept, Seen, Strategy
from unlabeled.pretrain.method import Output, Progress
from unlabeled.report.card import Made, backbone_card
from unlabeled.transfer.network import head_prefixes
from unlabeled.transfer.task import ImageTask, Traced
from unlabeled.transfer.tasks.classify import Classifier


class Increment(ImageTask):
    """One task of an incremental run.

    Args:
        classifier: with a head for all classes known at the end of the task; its old rows are those of the task before.
        others: further extractors, whose heads are not used: older ones that rest, or some that learn side by side.
        strategy: what is learnt.
        task: what comes now.
        head: in the place of the classifier's own; None = that one stays.
        auxiliary: a second head on the newest extractor, for the loss alone.
        before: the network at the end of the task before, which sees each batch too; None = nobody does.
        kept: what passes from the task before.
    """

    numbers: Tensor  # [n] of the task's images in the training source, see `numbered_`

    def __init__(
        self,
        classifier: Classifier,
        others: Sequence[Classifier],
        strategy: Strategy,
        task: Coming,
        head: nn.Module | None,
        auxiliary: nn.Module | None,
        before: Increment | None,
        kept: Kept,
    ) -> None:
        super().__init__()
        self.classifier, self.others = classifier, nn.ModuleList(others)
        self.strategy, self.task, self.ended = strategy, task, False
        self.architecture, self.family = classifier.architecture, classifier.family
        self.head, self.auxiliary = head, auxiliary
        for one in others if head is None else (classifier, *others):
            one.model.reset_classifier(0)
        for one in others if strategy.extends else ():
            one.requires_grad_(False)
        self.before, self.balanced = before, cast("Balanced | None", None)
        self.keep(kept)

    def keep(self, kept: Kept) -> None:
        """Take what passes on as buffers, so that checkpoints have it and it is where the network is."""
        device = next(self.parameters()).device
        self.passed = nn.Module()
        self.names = sorted(kept.tensors)  # a file has no order: on every process the same
        for place, name in enumerate(self.names):
            tensor = kept.tensors[name]
            self.passed.register_buffer(str(place), tensor if device.type == "meta" else tensor.to(device))
        self.passed.register_buffer("memory", kept.memory)

    def numbered_(self, numbers: np.ndarray) -> Increment:
        """Note the numbers [n] of the task's images in the training source; returns the network."""
        self.register_buffer("numbers", torch.from_numpy(numbers), persistent=False)
        return self

    @property
    def layers(self) -> Mapping[str, int]:
        """The layer of each parameter of the backbone that learns, from the image on."""
        return self.classifier.layers

    def balancing_(self, state: Mapping[str, Tensor], how: Balanced) -> Increment:
        """Prepare the training of the head alone, from the `state` at the end of the task; returns the network."""
        self.load_state_dict(state)
        self.before = self.auxiliary = None
        self.requires_grad_(False)
        self.balanced = how
        if how.anew:
            width = self.classifier.model.num_features * (1 + len(self.others))
            self.head = self.strategy.head(width, self.task, None)
        assert self.head is not None
        self.head.requires_grad_(True)
        return self

    @property
    def kept(self) -> Kept:
        """What passes from the task before, on the device."""
        tensors = {name: self.passed.get_buffer(str(place)) for place, name in enumerate(self.names)}
        return Kept(tensors, self.passed.get_buffer("memory"))

    # ---------------------------------------------------------------- what learns

    def forward(self, batch: Batch, progress: Progress) -> Output:
        if self.strategy.is_ordinary(self.task):
            output: Output = self.classifier(batch, progress)
            return output
        images, _ = batch.views[0].flat()
        now, labels = self.seen(images)._replace(numbers=self.numbers[batch.index]), batch.labels
        if self.strategy.draws and self.task.remembered:
            now, labels = _by_group(now, labels, (1, *self.strategy.draws))
        if self.balanced is not None:
            now = now._replace(logits=now.logits / self.balanced.temperature)
        with torch.no_grad():
            before = None if self.before is None else self.before.seen(images)
        terms = self.strategy.loss(now, before, labels, self.task, self.kept)
        terms |= self.strategy.penalty(self.learning(), self.task, self.kept)
        loss = torch.stack([*terms.values()]).sum()
        correct = (now.logits.detach().argmax(-1) == labels).float().mean()
        metrics = {name: term.detach() for name, term in terms.items()} if len(terms) > 1 else {}
        return Output(loss, {**metrics, "train_accuracy": 100 * correct})

    def seen(self, images: Tensor) -> Seen:
        """Features, logits and maps of images [B, C, H, W], of the weights that learn."""
        model = self.classifier.model
        with stage_maps(model, self.strategy.maps) as maps:
            newest = _features(model, images)
        features = torch.cat([*(_features(one.model, images) for one in self.others), newest], dim=1)
        logits = (self.classifier.head if self.head is None else self.head)(features)
        auxiliary = None if self.auxiliary is None else self.auxiliary(newest)
        return Seen(features, logits.float(), tuple(maps), auxiliary)

    def learning(self) -> Mapping[str, Tensor]:
        """All parameters that learn by the names that strategies know: those of the head begin with `HEAD`."""
        return {self.known_as(name): tensor for name, tensor in self.named_parameters() if tensor.requires_grad}

    def known_as(self, name: str) -> str:
        """The name of a parameter as strategies know it."""
        own = name.removeprefix("classifier.model.")
        prefix = next((one for one in head_prefixes(self.classifier.model) if own.startswith(one)), None)
        return own if prefix is None or self.head is not None else HEAD + own.removeprefix(prefix)

    # ---------------------------------------------------------------- how it is trained

    def train(self, mode: bool = True) -> Increment:
        """Set the mode; the network of the task before stays in evaluation mode."""
        super().train(mode)
        resting = [*self.others] if self.strategy.extends else []
        resting += [self.classifier, *self.others] if self.balanced is not None else []
        for part in (*resting, *([] if self.before is None else [self.before])):
            part.eval()
        return self

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        self.classifier.after_step(progress, broken)

    def batch_statistics(self) -> tuple[str, ...]:
        return self.classifier.batch_statistics()

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return self.classifier.decays(name, parameter)

    def lr_scale(self, name: str) -> float:
        part, _, own = name.partition(".")
        if part == "classifier":
            return self.strategy.rate(self.strategy.spaces - 1) * self.classifier.lr_scale(own)
        if part == "others":
            place, _, own = own.partition(".")
            return self.strategy.rate(int(place)) * self.classifier.lr_scale(own)
        return 1.0

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        return self.classifier.inactive(progress)

    def frozen(self, progress: Progress) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            rests = self.balanced is None and self.strategy.resting(self.known_as(name), self.task)
            if parameter.requires_grad and rests:
                yield parameter

    # ---------------------------------------------------------------- what it predicts, and what is left of it

    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes]: by logits while it learns, at the end as the strategy says."""
        seen = self.seen(images)
        return self.strategy.scores(seen, self.kept) if self.ended else seen.logits

    @property
    def network(self) -> Any:
        return self.classifier.network

    def traced(self, images: Tensor) -> Traced:
        traced = self.classifier.traced(images)
        return traced if self.head is None else traced._replace(scores=self.predict(images))

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        """Write a classifier where a linear head names the classes; else the newest backbone, its head beside it."""
        plain, model = self.classifier, self.classifier.model
        rows = None if self.strategy.linear else self.strategy.rows(self.kept)
        if rows is not None and self.head is None:
            with torch.no_grad():
                plain.head.weight.copy_(rows)
                plain.head.bias.zero_()
        if self.head is None and (self.strategy.linear or rows is not None):
            return plain.export(folder, prepared, made)
        arguments = self.family.without_head(self.architecture, plain.arguments)
        config = timm_config(self.architecture, arguments, model.num_features, prepared)
        config["incremental"] = {"strategy": self.strategy.name, "label_names": list(made.classes)}
        loading = self.family.loading(self.architecture, arguments)
        heads = {f"kept.{name}": tensor for name, tensor in self.kept.tensors.items()}
        heads |= {} if self.head is None else dict(self.head.state_dict())
        write_export(folder, plain.bare(), config, backbone_card(made, self.strategy.name, loading), heads)
        return False


def _by_group(seen: Seen, labels: Tensor, shares: tuple[int, ...]) -> tuple[Seen, Tensor]:
    """Rows of new images first, then those of each draw from memory."""

    def ordered(x: Tensor) -> Tensor:
        return torch.cat(parted(x, shares))

    numbers = None if seen.numbers is None else ordered(seen.numbers)
    by_group = seen._replace(features=ordered(seen.features), logits=ordered(seen.logits), numbers=numbers)
    return by_group, ordered(labels)


def _features(model: Any, images: Tensor) -> Tensor:
    """The pooled features [B, D] of a timm model."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features
