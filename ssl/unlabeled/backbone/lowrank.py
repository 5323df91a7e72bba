"""The settings of low-rank additions (LoRA), and where in a timm model they go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from torch import nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.nn.lowrank import LowRankLinear

Target = Literal["qkv", "proj", "fc1", "fc2"]
# layers that some networks have in the place of one
APART = {"qkv": ("q_proj", "k_proj", "v_proj"), "fc1": ("fc1_g", "fc1_x")}


class LowRank(BaseModel, frozen=True, extra="forbid"):
    """Low-rank matrices beside the linear layers of a transformer's blocks."""

    rank: int = Field(8, ge=1, description="columns of the thin matrices")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="their product is scaled by alpha / rank")
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = Field(
        ("qkv", "proj", "fc1", "fc2"), description="linears of attention (qkv, proj) and MLP (fc1, fc2)"
    )

    def wrap_(self, model: Any, family: type[Encoder], field: str, instead: str) -> None:
        """Put low-rank matrices beside the linear layers of a timm model.

        Args:
            model: of the `family`.
            field: of the recipe that holds these settings, for messages.
            instead: the advice where the family has no such layers.

        Raises:
            UserError: the family has no such layers, or the rank is that of a full matrix or more.
        """
        wanted = [name for target in self.targets for name in (target, *APART.get(target, ()))]
        found = [(owner, name) for owner, names in family.linears_(model) for name in wanted if name in names]
        if not found:
            words = family.in_words(model.pretrained_cfg["architecture"])
            raise UserError(
                f"LoRA adapts attention and MLP of a transformer's blocks, and {words} has no "
                f"{', '.join(self.targets)}. {instead}"
            )
        for owner, name in found:
            layer: nn.Linear = getattr(owner, name)
            if self.rank > (full := min(layer.in_features, layer.out_features)):
                raise UserError(
                    f"{field}.rank is {self.rank}, but {name} maps {layer.in_features} to "
                    f"{layer.out_features} dimensions: expected at most {full}. Ranks of 4 to 64 are usual."
                )
            setattr(owner, name, LowRankLinear(layer, self.rank, self.alpha / self.rank))
