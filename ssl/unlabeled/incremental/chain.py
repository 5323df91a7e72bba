"""From task to task: what a task leaves in its folder, and the network of the next one made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import packed
from unlabeled.backbone.weights import read_weights
from unlabeled.files import replacing
from unlabeled.incremental.method import Increment
from unlabeled.incremental.recipe import Protocol
from unlabeled.incremental.strategy import Coming, Kept, Strategy
from unlabeled.manifest import Tensors
from unlabeled.transfer.network import Trained, head_prefixes, timm_arguments
from unlabeled.transfer.strategies import frozen
from unlabeled.transfer.tasks.classify import Classifier, Config

FILE = "passed.safetensors"
NOTHING = Kept({}, torch.zeros(0, dtype=torch.int64))


class Passed(NamedTuple):
    """What passes from a task to the next.

    Attributes:
        models: states of plain timm models: the extractor, and those that learnt side by side with it.
        head: state of a head of the strategy's own; {} where it is the first model's.
        kept: the strategy's tensors, and the memory.
    """

    models: Sequence[Tensors]
    head: Tensors
    kept: Kept

    def write(self, folder: Path) -> None:
        """Write it into the folder of the task. Raises OSError."""
        tensors = {f"model{i}/{name}": one for i, model in enumerate(self.models) for name, one in model.items()}
        tensors |= {f"head/{name}": one for name, one in self.head.items()}
        tensors |= {f"own/{name}": one for name, one in self.kept.tensors.items()} | {"memory/": self.kept.memory}
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(packed(tensors))

    @classmethod
    def read(cls, folder: Path) -> Passed:
        """Read what a task has left in its folder. Raises UserError when it is damaged."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in read_weights(folder / FILE).items():
            part, _, own = name.partition("/")
            parts.setdefault(part, {})[own] = tensor
        models = [parts[name] for name in sorted(parts) if name.startswith("model")]
        return cls(models, parts.get("head", {}), Kept(parts.get("own", {}), parts["memory"][""]))


class Chain(NamedTuple):
    """The networks of the tasks of a run.

    Attributes:
        config: settings of the classifier.
        strategy: how classes are learnt.
        backbone_once: whether the backbone learns in the first task alone.
        protocol: which classes come when.
        seed: of the recipe.
        encoder: that the first task begins with.
        passed: what a task, by its number, has left.
    """

    config: Config
    strategy: Strategy
    backbone_once: bool
    protocol: Protocol
    seed: int
    encoder: Encoder
    passed: Callable[[int], Passed]

    def coming(self, number: int, counts: Sequence[int] = ()) -> Coming:
        """A task with so many images of each class."""
        sizes, old = self.protocol.sizes, self.protocol.old(number)
        found = np.array(counts or [0] * (old + sizes[number]), dtype=np.int64)
        # not `torch.tensor`: what a plan makes on the meta device has no values
        return Coming(number, len(sizes), old, sizes[number], torch.from_numpy(found), self.seed)

    def network(self, number: int, counts: Sequence[int]) -> Increment:
        """The network of a task, as it begins."""
        task, strategy = self.coming(number, counts), self.strategy
        config = self._resting if number and self.backbone_once else self.config
        models = self.passed(number - 1).models if number else [None] * strategy.spaces
        newest, *beside = [self._classifier(config, counts, model) for model in models]
        older = [self._classifier(self._resting, [1], self.passed(k).models[0]) for k in self._frozen(number)]
        width = newest.model.num_features * (1 + len(older) + len(beside))
        head, kept = None, NOTHING
        if strategy.own_head:
            head = strategy.head(width, task, self._head(number - 1))
        if number:
            kept = self.passed(number - 1).kept
            if head is None:
                _keep_rows(newest, self.passed(number - 1).models[0], task.old)
        auxiliary = strategy.auxiliary(newest.model.num_features, task)
        before = self.ended(number - 1) if number and strategy.teacher else None
        return Increment(newest, [*older, *beside], strategy, task, head, auxiliary, before, kept)

    def ended(self, number: int) -> Increment:
        """The network at the end of a task, of which nothing learns."""
        left, task, strategy = self.passed(number), self.coming(number), self.strategy
        newest, *beside = [self._classifier(self._resting, [1] * task.classes, model) for model in left.models]
        older = [self._classifier(self._resting, [1], self.passed(k).models[0]) for k in self._frozen(number)]
        head = self._head(number)
        if head is None:
            _keep_rows(newest, left.models[0], task.classes)
        return Increment(newest, [*older, *beside], strategy, task, head, None, None, left.kept).requires_grad_(False)

    @property
    def _resting(self) -> Config:
        return self.config.model_copy(update={"strategy": frozen.Config()})

    def _frozen(self, number: int) -> range:
        """The tasks whose extractors are kept beside that of a task."""
        return range(number) if self.strategy.extends else range(0)

    def _head(self, number: int) -> nn.Module | None:
        """The head at the end of a task; None before the first, and where it is the model's own."""
        if number < 0 or not self.strategy.own_head:
            return None
        width, head = self.encoder.width * self.strategy.spaces, None
        for task in range(number + 1):
            extractors = task + 1 if self.strategy.extends else 1
            head = self.strategy.head(width * extractors, self.coming(task), head)
        assert head is not None
        head.load_state_dict(self.passed(number).head)
        return head

    def _classifier(self, config: Config, counts: Sequence[int], model: Tensors | None) -> Classifier:
        """A classifier with a new head, from the encoder or from the state of a plain timm model."""
        if model is None:
            return Classifier(self.encoder, config, counts)
        arguments = timm_arguments(self.encoder, self.config.pool, self.config.view.shape, self.config.strategy.frozen)
        return Classifier(self.encoder, config, counts, Trained(arguments, model))


def _keep_rows(classifier: Classifier, model: Tensors, rows: int) -> None:
    """Give the head the first rows that a state has."""
    prefix = head_prefixes(classifier.model)[0]
    with torch.no_grad():
        classifier.head.weight[:rows] = model[f"{prefix}weight"][:rows]
        classifier.head.bias[:rows] = model[f"{prefix}bias"][:rows]
