"""The contract of strategies: which parameters of a classifier learn, how fast and when. Kinds are the files of
`strategies/`."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.registry import ByFile
from unlabeled.transfer.network import ClassifierPool


class Strategy(BaseModel, ABC, frozen=True, extra="forbid"):
    """How a classifier is trained. Its fields are what recipes set; `name` is the name of its file.

    Unless a kind says otherwise, the backbone is frozen: it runs in evaluation mode, and only layers that no encoder
    has learn.
    """

    frozen: ClassVar[bool] = True  # whether the backbone runs in evaluation mode, running statistics included
    from_classifier: ClassVar[bool] = False  # whether it starts from a classifier, which it keeps but for the head
    own_pooling: ClassVar[bool] = False  # whether it pools by itself, whatever the encoder is evaluated with
    name: str

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Freeze, wrap or add layers of a timm model of a `family`; `head` are the prefixes of its head's parameters,
        `new` those of all that its encoder did not have, the head's among them."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(new))

    def last_drop_path(self) -> float:
        """Drop-path rate of the last block."""
        return 0.0

    def rate(self, below: int) -> float:
        """Factor on the learning rate of a layer so many layers below the head."""
        return 1.0

    def starts(self, below: int) -> float:
        """The epoch in which a layer so many layers below the head begins to learn."""
        return 0.0

    def pooling(self, pool: ClassifierPool) -> ClassifierPool:
        """How the classifier pools where the task says `pool`. Raises ValueError when it cannot."""
        return pool

    def head_norm(self, width: int) -> BatchNorm | None:
        """Normalisation of the pooled features before the head, without parameters; None = none."""
        return None

    def merged(self, model: Any) -> dict[str, Tensor]:
        """The state dict of the plain timm model that a trained one has become."""
        return dict(model.state_dict())

    def plan(self, layers: int, epochs: float) -> str:
        """When the `layers` below the head begin to learn in a run of `epochs`; empty = all from the start."""
        return ""


class WholeNetwork(Strategy, ABC, frozen=True, extra="forbid"):
    """Every layer learns."""

    frozen: ClassVar[bool] = False
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block")

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Leave the model as it is."""

    def last_drop_path(self) -> float:
        return self.drop_path


class ByDepth(WholeNetwork, ABC, frozen=True, extra="forbid"):
    """Layers have learning rates of their own."""

    backbone_lr: float = Field(1.0, gt=0, le=1, description="backbone's rate as a share of the head's")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate per layer, or stage of a CNN, below the head"
    )

    def rate(self, below: int) -> float:
        return self.backbone_lr * self.layer_decay**below


STRATEGIES = ByFile("unlabeled.transfer.strategies", Strategy, default="full")
