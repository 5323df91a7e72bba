"""What tasks share that read maps of a backbone: strategies, averaged weights, what learns, when and how fast."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from typing_extensions import Self

from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.nn.batchnorm import normalises
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Progress
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.strategies import full
from unlabeled.transfer.strategy import STRATEGIES, Strategy
from unlabeled.transfer.task import Task, TaskConfig

HEIGHT = 8  # of a probe for the features that a strategy would normalise
Network = TypeVar("Network", bound=nn.Module)


class DenseConfig(TaskConfig, ABC, frozen=True, extra="forbid"):
    """The fields of tasks that read maps of a backbone."""

    strategy: Annotated[Strategy, STRATEGIES] = Field(full.Config(), description="which parts learn, how fast and when")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of averaged weights, which are then scored and exported; null = none",
    )

    @field_validator("strategy")
    @classmethod
    def _for_a_backbone(cls, strategy: Strategy) -> Strategy:
        if strategy.from_classifier or strategy.own_pooling or strategy.head_norm(HEIGHT) is not None:
            raise ValueError(
                f"strategy {strategy.name} is for classifiers: expected frozen, full, differential, gradual or lora"
            )
        return strategy

    @property
    def way(self) -> str:
        return self.strategy.name

    def decay(self, step: int) -> float | None:
        """That of averaged weights after so many steps, None = there are none."""
        return self.ema

    def write_looks(self, folder: Path, scorer: Any, method: Any, look: Any) -> str:
        return ""  # its pictures are part of the result

    def unfreezing(self, method: Any, epochs: float) -> str:
        return self.strategy.plan(method.depth, epochs)


class DenseTask(Task):
    """A network whose backbone is a copy of an encoder: what learns of it, and averaged weights of the whole.

    Args:
        encoder: at the size of the images.
        config: of the task.

    Attributes:
        layers: the layer of each of the encoder's parameters.
        depth: layers below the heads, the embeddings among them.
        average: the averaged network; None = there is none.
    """

    vit: ClassVar[str]  # the prefix of the names of a timm model's parameters in the method
    average: nn.Module | None

    def __init__(self, encoder: Encoder, config: DenseConfig) -> None:
        super().__init__()
        self.strategy, self.decay = config.strategy, config.decay
        self.architecture, self.family = encoder.model, type(encoder)
        self.arguments, self.interpolation = encoder.arguments, encoder.interpolation
        self.depth = encoder.depth + 1

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """The network that learns."""

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The encoder with its pyramid, of the weights that learn."""

    def based(self, encoder: Encoder, channels: int, finest: int, drop_block: float = 0.0) -> Backbone:
        """A backbone on a copy of the encoder, of which the strategy has frozen, wrapped or added layers."""
        drop_path = self.strategy.last_drop_path()
        twin = type(encoder).build(encoder.model, encoder.arguments, encoder.interpolation, drop_path)
        twin.load_state_dict(encoder.state_dict())
        backbone = Backbone(twin, channels, finest, drop_block)
        self.strategy.start_(twin.vit, type(encoder), (), ())
        return backbone

    def averaged(self, encoder: Encoder, network: Network) -> Network | None:
        """The averaged weights of a new network, where there are any; notes which layer a parameter belongs to."""
        vit = self.backbone.encoder.vit
        self.layers = {name: encoder.layer_of(name) for name, _ in vit.named_parameters()}
        self.waiting = list(self._waiting(vit))
        if self.decay(0) is None:
            return None
        average = copy.deepcopy(network).eval()
        follow_(average, network)
        return average

    def unfreeze(self, progress: Progress) -> None:
        """Let layers that are still frozen run in evaluation mode: no BatchNorm updates, no dropout."""
        if self.training:
            for module, start in self.waiting:
                module.train(progress.epoch >= start)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone and averaged weights stay in evaluation mode."""
        super().train(mode)
        if self.strategy.frozen:
            self.backbone.encoder.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        decay = self.decay(progress.step + 1)
        if self.average is not None and decay is not None:
            ema_(self.average, self.learner, decay, broken)
            for own, source in zip(self.average.buffers(), self.learner.buffers(), strict=True):
                own.copy_(source)

    def batch_statistics(self) -> tuple[str, ...]:
        """By batch normalisation of a backbone that is not frozen."""
        there = normalises(self.backbone.encoder) and not self.strategy.frozen
        return (f"batch normalisation of {self.architecture}",) if there else ()

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith((".bias", *self.backbone.encoder.undecayed))

    def lr_scale(self, name: str) -> float:
        layer = self.layers.get(name.removeprefix(self.vit))
        return 1.0 if layer is None else self.strategy.rate(self.depth - layer)

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        if self.waiting:
            for name, parameter in self.backbone.encoder.vit.named_parameters():
                if progress.epoch < self.strategy.starts(self.depth - self.layers[name]):
                    yield parameter

    @torch.no_grad()
    def exported(self, scored: nn.Module, encoder: Encoder) -> tuple[Tensors, Tensors]:
        """The weights of the plain timm model of the network that is scored, and of all of it."""
        return self.strategy.merged(encoder.vit), dict(scored.state_dict())

    def _waiting(self, vit: nn.Module) -> Iterator[tuple[nn.Module, float]]:
        """Modules with parameters of their own that are frozen at first, and the epochs in which they are unfrozen."""
        for prefix, module in vit.named_modules():
            own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if own and prefix and (start := self.strategy.starts(self.depth - self.layers[own[0]])) > 0:
                yield module, start
