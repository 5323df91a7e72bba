"""LoRA: linear layers that stay as they are and learn a product of two thin matrices beside them (Hu et al. 2022)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.lowrank import LowRank
from unlabeled.nn.lowrank import ADDED, merged_state
from unlabeled.transfer.strategy import Strategy


class Config(LowRank, Strategy, frozen=True, extra="forbid"):
    """Add low-rank matrices to attention and MLP of a transformer, and train them and the head."""

    name: Literal["lora"] = "lora"

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Wrap linear layers and freeze the rest.

        Raises:
            UserError: the family has no such layers, or the rank is that of a full matrix or more.
        """
        self.wrap_(model, family, "task.strategy", "Use task.strategy.name=differential.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(new) or name.endswith(ADDED))

    def merged(self, model: Any) -> dict[str, Tensor]:
        return merged_state(model)
