"""Vision transformers with rotary positions, timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT.

Queries and keys of a patch are turned by angles that follow from its row and column (Su et al. 2021; for images Heo et
al., ECCV 2024). Prefix tokens are not turned. Some networks have a table of positions besides, or instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import (
    TIMM_POOLS,
    Fill,
    Hidden,
    Hiding,
    InTimm,
    Pool,
    Scheme,
    Tokens,
    for_timm,
    module_of,
)
from unlabeled.backbone.transformer import EXPORTED, Transformer, fill_in, normed_after, outline
from unlabeled.errors import first_line
from unlabeled.nn.patches import gather, patchify
from unlabeled.nn.positions import Grid, resample

LINEARS = ("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc1_g", "fc1_x", "fc2")
# arguments of timm that an export may have, besides those of any transformer
SHARED = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "init_values", "no_embed_class")
SWITCHES = (
    "dynamic_img_size",
    "swiglu_mlp",
    "use_abs_pos_emb",
    "use_fc_norm",
    "use_post_transformer_norm",
    "use_rot_pos_emb",
)
POOLING = ("global_pool", "use_fc_norm", "use_post_transformer_norm")
QUARTER = 4  # an angle of rows and one of columns, each for a pair of channels


class Rope(Transformer):
    """Wraps a timm `Eva`. It encodes images of any size that the patch size divides.

    Angles follow the grid of patches, a table is resampled. Of dropped patches the angles are dropped too, so that a
    visible patch keeps those of its place.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"drop", "replace"})
    layered: ClassVar[bool] = True
    names: ClassVar[str] = "eva02_*"
    undecayed: ClassVar[tuple[str, ...]] = (*Transformer.undecayed, "rope.freqs")
    bare: ClassVar[Mapping[str, Any]] = {}
    positions: ClassVar[tuple[str, ...]] = ("rope", "rope_learned")
    patch_pools: ClassVar[tuple[str, ...]] = ("mean", "mean_max")
    norm_after_pool: ClassVar[str] = "use_fc_norm"
    rescale: float | None = None  # in training, coordinates times a factor of [1 / rescale, rescale]
    exported: ClassVar[Mapping[str, Any]] = {
        **{name: EXPORTED[name] for name in SHARED},
        **dict.fromkeys(SWITCHES, (bool | None, None)),
        "num_reg_tokens": (int | None, Field(None, ge=0, le=256)),
        "swiglu_align_to": (int | None, Field(None, ge=1, le=1024)),
        "attn_type": (Literal["eva", "rope"] | None, None),
        "rope_temperature": (float | None, Field(None, gt=0, le=1e9)),
    }

    # ---------------------------------------------------------------- by name

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if module_of(model) == "eva" else 0

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        from timm.models.eva import Eva

        if type(vit) is not Eva:
            raise ValueError(f"expected a timm Eva, found '{model}'")

    @classmethod
    def sized(cls, model: str) -> bool:
        return "learned" in cls.default_positions(model)

    @classmethod
    def crop_multiple(cls, model: str, patch_size: int) -> int:
        return patch_size

    @classmethod
    def default_positions(cls, model: str) -> str:
        vit = outline(model)
        if vit.rope is None:
            return "learned"
        return "rope" if vit.pos_embed is None else "rope_learned"

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        own, model = outline(others["model"]), others["model"]
        if name == "positions":
            default = cls.default_positions(model)
            known = ("rope_learned", "rope", "learned") if default == "rope_learned" else (default,)
            if value not in known:
                raise ValueError(f"'{model}' has no {value} positions: expected {' or '.join(known)}")
        super().check_field(name, value, changed, others)
        width, heads = others.get("width") or own.embed_dim, others.get("heads") or own.blocks[0].attn.num_heads
        if name == "positions" and value.startswith("rope") and width % (QUARTER * heads):
            raise ValueError(
                f"rotary positions need heads of a multiple of {QUARTER} channels, found a width of {width} in {heads} "
                "heads: set width and heads so that width / heads is one"
            )
        if name == "rope_rescale" and changed and not hasattr(own.rope, "periods"):
            raise ValueError(f"the rotary positions of '{model}' are not DINOv3's: leave {name} out, found {value}")
        if name == "init_values" and value == 0 and getattr(own.blocks[0], "gamma_1", None) is not None:
            raise ValueError(
                f"timm's '{model}' always has a layer scale: set a positive value, such as 1e-5, or leave it out"
            )

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        """See `Encoder`; a network that nobody pools gets its norm before pooling, and no attention pool."""
        told = super().arguments_of({**fields, "init_values": fields["init_values"] or None})
        positions = fields["positions"]
        if "reg_tokens" in told:
            told["num_reg_tokens"] = told.pop("reg_tokens")
        if positions != cls.default_positions(fields["model"]):
            told |= {"use_abs_pos_emb": "learned" in positions, "use_rot_pos_emb": positions.startswith("rope")}
        return told if pooled else {**told, "global_pool": "avg", "use_fc_norm": False}

    @classmethod
    def without_head(cls, model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Encoder`; an attention pool or a norm after pooling belongs to the head if it is new to the network."""
        told, own = dict(arguments), outline(model)
        if told.get("global_pool") == "map" and own.attn_pool is None:
            told["global_pool"] = own.global_pool
        if told.get("use_fc_norm") and not normed_after(own):
            told = {name: value for name, value in told.items() if name not in POOLING}
        return told

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        """See `Encoder`; angles are computed for each image size anew."""
        try:
            return super().create(model, {**arguments, "dynamic_img_size": True}, drop_path, classes)
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot build '{model}' with {dict(arguments)}: {first_line(error)}") from error

    # ---------------------------------------------------------------- timm models of this family

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        """See `Encoder`; a network whose own pooling has parameters keeps it, one without a table takes any size."""
        with torch.device("meta"):
            vit = cls.create(model, arguments)
        told = for_timm(arguments)
        if vit.pos_embed is None:
            told = {**{name: value for name, value in told.items() if name != "img_size"}, "dynamic_img_size": True}
        if pool not in (None, "own") and not _pools_itself(vit):
            told |= {"global_pool": TIMM_POOLS.get(pool, "token"), "use_fc_norm": False}
        return InTimm(told.get("global_pool", vit.global_pool), told)

    @classmethod
    def linears(cls, model: Any) -> list[tuple[nn.Module, tuple[str, ...]]]:
        owners = [owner for block in model.blocks for owner in (block.attn, block.mlp)]
        return [(one, tuple(n for n in LINEARS if isinstance(getattr(one, n, None), nn.Linear))) for one in owners]

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        prefix = model.num_prefix_tokens
        found = model.forward_intermediates(
            images, indices=blocks, norm=True, return_prefix_tokens=prefix > 0, intermediates_only=True
        )
        pairs = found if prefix else [(maps, maps.flatten(2).mT[:, :0]) for maps in found]
        read = [(first, maps.flatten(2).mT, (maps.shape[-2], maps.shape[-1])) for maps, first in pairs]
        return [Tokens(*one, torch.cat(one[:2], dim=1)) for one in read]

    # ---------------------------------------------------------------- one encoder

    @property
    def pools(self) -> tuple[str, ...]:
        return (*(["cls"] if self.has_class_token else []), *self.patch_pools, "attention", "own")

    @property
    def pools_itself(self) -> bool:
        return _pools_itself(self.vit)

    @property
    def blocks_in_python(self) -> str:  # type: ignore[override]
        """See `Encoder`; timm gives no pairs where there are no tokens before the patches."""
        told = "images, indices={n}, norm=True, output_fmt='NLC', intermediates_only=True"
        if not self.num_prefix:
            return f"blocks = [(x, None) for x in model.forward_intermediates({told})]"
        return f"blocks = model.forward_intermediates({told}, return_prefix_tokens=True)"

    def fields(self) -> dict[str, Any]:
        rotary, table = self.vit.rope is not None, self.vit.pos_embed is not None
        positions = "rope_learned" if rotary and table else "rope" if rotary else "learned"
        registers, own = self.num_prefix - self.has_class_token, outline(self.model)
        told = None if registers == own.num_prefix_tokens - (own.cls_token is not None) else registers
        return {**super().fields(), "positions": positions, "registers": told}

    def layer_of(self, name: str) -> int:
        """As MAE's `util/lr_decay.py`; learnt frequencies of angles belong to the embeddings."""
        return 0 if name.startswith("rope.") else super().layer_of(name)

    def configure_(self, fields: Mapping[str, Any]) -> None:
        super().configure_(fields)
        self.rescale = fields["rope_rescale"]

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        """See `Encoder`; `scratch` is MAE's."""
        super().initialise_("mae" if scheme == "scratch" else scheme, **settings)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        """See `Transformer`; a network that has its norm after pooling keeps it there."""
        told = {**self.arguments, "img_size": list(size)}
        if pool == "own":
            return told
        after = normed_after(self.vit) or (pool in self.patch_pools and not frozen)
        before = has(self.vit.norm) and (normed_after(self.vit) or not after)
        return {**told, "global_pool": TIMM_POOLS[pool], "use_fc_norm": after, "use_post_transformer_norm": before}

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        x, grid = self.begin(images, drop, replace, fill)
        for output in self.outputs(x, grid, drop):
            x = output
        return self.finish(x, grid)

    def layers(self, images: Tensor, drop: Hidden = None) -> Tokens:
        x, grid = self.begin(images, drop)
        found = (x, *self.outputs(x, grid, drop))
        return self.finish(found[-1], grid)._replace(layers=found)

    def begin(
        self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None
    ) -> tuple[Tensor, Grid]:
        grid = self.grid(images)
        prefix_table, table = self._positions(grid)

        # embed the patches, only the visible ones when the rest is dropped
        patches = patchify(images, self.patch_size)
        if drop is not None:
            keep, _ = drop.indices()
            patches = gather(patches, keep)
            table = table if table is None else gather(table.expand(len(images), -1, -1), keep)
        x = self.embed(patches)
        if replace is not None:
            x = fill_in(x, replace, fill)
        x = x if table is None else x + table

        tokens = [token for token in (self.vit.cls_token, self.vit.reg_token) if token is not None]
        if tokens:
            prefix = torch.cat(tokens, dim=1) + prefix_table
            x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)
        return self.vit.norm_pre(x), grid

    def outputs(self, x: Tensor, grid: Grid, drop: Hidden = None) -> Iterator[Tensor]:
        for block, turn in zip(self.vit.blocks, self.rotations(grid, drop), strict=True):
            x = block(x, rope=turn)
            yield x

    def rotations(self, grid: Grid, drop: Hidden = None) -> Sequence[Tensor | None]:
        """Sines and cosines of the angles of every block's patches, [N, 2 D / heads], or of visible ones [B, 1, K, 2 D
        / heads]; None = positions are not rotary. Where each block and head has its own they are [heads, N, ...], or
        [B, heads, K, ...]."""
        if self.vit.rope is None:
            return [None] * self.depth
        table = sines_and_cosines(self.vit.rope, grid, self.rescale if self.training else None)
        if drop is not None:
            # visible patches come next to last, their images before the heads
            table = table[..., drop.indices()[0], :]
            table = table.movedim(-3, -4) if self.vit.rope_mixed else table.unsqueeze(-3)
        return list(table) if self.vit.rope_mixed else [table] * self.depth

    def _positions(self, grid: Grid) -> tuple[Tensor | float, Tensor | None]:
        """The table of prefix tokens, and that of patches [1, N, D]; None = there is none."""
        if (table := self.vit.pos_embed) is None:
            return 0.0, None
        prefix = 0 if self.vit.no_embed_class else self.num_prefix
        patches = resample(table[:, prefix:], self.native_grid, grid, self.interpolation)
        return (table[:, :prefix] if prefix else 0.0), patches


def sines_and_cosines(rope: Any, grid: Grid, rescale: float | None = None) -> Tensor:
    """timm's table of a rotary embedding for (rows, columns) of patches [..., N, 2 D / heads], on its device.

    DINOv3's coordinates are the centres of patches in [-1, 1], along the longer or the shorter side alone where the
    embedding says so (official `rope_position_encoding.py`), times one factor, log-uniform in [1 / rescale, rescale].
    timm makes them on the CPU, so that each forward would wait for the GPU.
    """
    from timm.layers import RotaryEmbeddingDinoV3

    if not isinstance(rope, RotaryEmbeddingDinoV3):
        table: Tensor = rope.get_embed(list(grid))
        return table
    over = {"separate": grid, "max": (max(grid),) * 2, "min": (min(grid),) * 2}[rope.normalize_coords]
    device = rope.periods.device
    axes = [(torch.arange(n, dtype=torch.float32, device=device) + 0.5) / m for n, m in zip(grid, over, strict=True)]
    centres = 2 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1) - 1
    if rescale is not None:
        centres = centres * torch.empty(1, device=device).uniform_(-math.log(rescale), math.log(rescale)).exp()
    return torch.cat(rope._get_pos_embed_from_coords(centres), dim=-1)


def has(part: nn.Module) -> bool:
    """Whether a part of a timm model does anything."""
    return not isinstance(part, nn.Identity)


def _pools_itself(vit: Any) -> bool:
    """Whether a timm model pools by attention, has a norm after pooling, or takes maxima."""
    return vit.attn_pool is not None or normed_after(vit) or vit.global_pool not in ("token", "avg")
