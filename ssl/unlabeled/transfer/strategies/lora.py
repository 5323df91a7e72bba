"""LoRA: linear layers that stay as they are and learn a product of two thin matrices beside them (Hu et al. 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.transfer.strategy import Strategy

Target = Literal["qkv", "proj", "fc1", "fc2"]
ADDED = ("lora_down", "lora_up")


class Config(Strategy, frozen=True, extra="forbid"):
    """Add low-rank matrices to attention and MLP of a transformer, and train them and the head."""

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="columns of the thin matrices")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="their product is scaled by alpha / rank")
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = Field(
        ("qkv", "proj", "fc1", "fc2"), description="linears of attention (qkv, proj) and MLP (fc1, fc2)"
    )

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Wrap linear layers and freeze the rest.

        Raises:
            UserError: the family has no such layers, or the rank is that of a full matrix or more.
        """
        found = [(owner, name) for owner, names in family.linears_(model) for name in self.targets if name in names]
        if not found:
            words = family.in_words(model.pretrained_cfg["architecture"])
            raise UserError(
                f"task.strategy lora adapts attention and MLP of a transformer's blocks, and {words} has no "
                f"{', '.join(self.targets)}. Use task.strategy.name=differential."
            )
        for owner, name in found:
            layer: nn.Linear = getattr(owner, name)
            if self.rank > (full := min(layer.in_features, layer.out_features)):
                raise UserError(
                    f"task.strategy.rank is {self.rank}, but {name} maps {layer.in_features} to "
                    f"{layer.out_features} dimensions: expected at most {full}. Ranks of 4 to 64 are usual."
                )
            setattr(owner, name, LowRankLinear(layer, self.rank, self.alpha / self.rank))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(new) or name.endswith(ADDED))

    @torch.no_grad()
    def merged(self, model: Any) -> dict[str, Tensor]:
        state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(ADDED)}
        for name, layer in model.named_modules():
            if isinstance(layer, LowRankLinear):
                state[f"{name}.weight"] = layer.merged_weight()
        return state


class LowRankLinear(nn.Linear):
    """x W^T + b + scale x (up down)^T: W and b do not learn, down [rank, in] and up [out, rank] do (equation 3).

    `up` begins at 0, so that nothing changes before the first step. The names of W and b stay `weight` and `bias`.

    Args:
        linear: the layer that it takes the place of; its parameters are shared, not copied.
        rank: of the thin matrices.
        scale: factor on their product.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale
        self.lora_down = nn.Parameter(torch.empty(rank, self.in_features, device=linear.weight.device))
        self.lora_up = nn.Parameter(torch.zeros(self.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        # the scale is on the thin matrix: fewer numbers than the output has
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_down), self.scale * self.lora_up)

    def merged_weight(self) -> Tensor:
        """W + scale up down [out, in]: one plain layer with the same output."""
        return self.weight + self.scale * self.lora_up @ self.lora_down
