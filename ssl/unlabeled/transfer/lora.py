"""LoRA: linear layers that stay as they are and learn a product of two thin matrices beside them (Hu et al. 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError

Target = Literal["qkv", "proj", "fc1", "fc2"]
ADDED = ("lora_down", "lora_up")


class Lora(BaseModel, frozen=True, extra="forbid"):
    """Which layers of a transformer's blocks are adapted, and how."""

    rank: int = Field(8, ge=1, description="columns of the thin matrices")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="their product is scaled by alpha / rank")
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = Field(
        ("qkv", "proj", "fc1", "fc2"), description="of attention (qkv, proj) and MLP (fc1, fc2)"
    )


class LowRankLinear(nn.Linear):
    """x W^T + b + scale x (up down)^T: W and b do not learn, down [rank, in] and up [out, rank] do (equation 3).

    `up` begins at 0, so that nothing changes before the first step. The names of W and b stay `weight` and `bias`.

    Args:
        linear: the layer that it takes the place of; its parameters are shared, not copied.
        config: rank and scale.
    """

    def __init__(self, linear: nn.Linear, config: Lora) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = config.alpha / config.rank
        self.lora_down = nn.Parameter(torch.empty(config.rank, self.in_features, device=linear.weight.device))
        self.lora_up = nn.Parameter(torch.zeros(self.out_features, config.rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        # the scale is on the thin matrix: fewer numbers than the output has
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_down), self.scale * self.lora_up)

    def merged_weight(self) -> Tensor:
        """W + scale up down [out, in]: one plain layer with the same output."""
        return self.weight + self.scale * self.lora_up @ self.lora_down


def adapt_(model: Any, family: type[Encoder], config: Lora) -> None:
    """Give a timm model of a family its low-rank layers; everything else of it stops learning.

    Raises:
        UserError: it has no such layers, or the rank is that of a full matrix or more.
    """
    model.requires_grad_(False)
    if not family.adaptable:
        raise UserError(
            "task.mode lora adapts attention and MLP of a transformer's blocks, and "
            f"{family.in_words(model.pretrained_cfg['architecture'])} has none. Use task.mode=differential_lr."
        )
    for owner, names in family.linears_(model):
        for name in (one for one in config.targets if one in names):
            layer = getattr(owner, name)
            _check_rank(name, layer, config.rank)
            setattr(owner, name, LowRankLinear(layer, config))


def _check_rank(name: str, layer: nn.Linear, rank: int) -> None:
    if rank > (full := min(layer.in_features, layer.out_features)):
        raise UserError(
            f"task.lora.rank is {rank}, but {name} maps {layer.in_features} to {layer.out_features} dimensions: "
            f"expected at most {full}. Ranks of 4 to 64 are usual."
        )


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the timm model that this one has become: the products added, no name left of them."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(ADDED)}
    for name, layer in model.named_modules():
        if isinstance(layer, LowRankLinear):
            state[f"{name}.weight"] = layer.merged_weight()
    return state
