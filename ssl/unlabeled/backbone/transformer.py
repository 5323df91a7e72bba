"""Parts that the families of transformers share: all but the forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import TIMM_POOLS, Encoder, Fill, InTimm, Pool, Scheme, Tensors, Tokens, for_timm
from unlabeled.backbone.norms import set_eps_
from unlabeled.data.source import Finite
from unlabeled.nn.attention import attention_map, pool_map
from unlabeled.nn.droppath import LEAST, skip_dropped_
from unlabeled.nn.init import distilled_vit_, ijepa_, mae_, mocov3_, simmim_
from unlabeled.nn.modes import without_values
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import Grid, Interpolation, resample

SCHEMES: dict[str, Callable[..., None]] = {
    "mae": mae_,
    "mocov3": mocov3_,
    "dino": distilled_vit_,
    "simmim": simmim_,
    "ijepa": ijepa_,
}

# fields of recipes that are arguments of timm, in its order, and those that timm knows by another name
FIELDS = ("patch_size", "width", "depth", "heads", "mlp_ratio", "qkv_bias", "norm_eps", "init_values", "registers")
NAMES = {"width": "embed_dim", "heads": "num_heads", "registers": "reg_tokens"}
# arguments of timm that an export may have: whole numbers within bounds, and switches
BOUNDS = {"patch_size": 1024, "embed_dim": 16384, "depth": 128, "num_heads": 256, "reg_tokens": 256}
Heads = Annotated[int, Field(ge=1, le=BOUNDS["num_heads"])]
SWITCHES = ("qkv_bias", "qk_norm", "proj_bias", "class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm")
STAGES = (Annotated[list[Annotated[int, Field(ge=1, le=128)]], Field(min_length=1, max_length=8)] | None, None)
# parameters before the blocks, beside the patch convolution
EMBEDDINGS = ("cls_token", "pos_embed", "reg_token", "dist_token", "mask_token")
EXPORTED: dict[str, Any] = {
    **{name: (int | None, Field(None, ge=int(name != "reg_tokens"), le=most)) for name, most in BOUNDS.items()},
    "num_heads": (Heads | Annotated[list[Heads], Field(max_length=8)] | None, None),
    **dict.fromkeys((*SWITCHES, "use_fc_norm"), (bool | None, None)),
    "mlp_ratio": (float | None, Field(None, gt=0, le=64)),
    "init_values": (Finite | None, None),
}


class Transformer(Encoder, ABC):
    """A timm transformer of one resolution, with `patch_embed`, `blocks` and `norm`; see `Encoder`."""

    bare: ClassVar[Mapping[str, Any]] = {"global_pool": "token"}
    other_norm: ClassVar[bool] = True
    positions: ClassVar[tuple[str, ...]]  # of recipes, besides learned ones
    patch_pools: ClassVar[tuple[str, ...]]  # poolings of patches that timm's classifier has
    norm_after_pool: ClassVar[str]  # timm's argument for a norm after pooling instead of before
    headless: ClassVar[Mapping[str, Any]] = {}  # arguments of timm without a head, where its default is another

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        self.require(vit, model)
        super().__init__(vit, model, arguments, interpolation)
        self.patch_size, self.native_grid = self.vit.patch_embed.patch_size[0], self.vit.patch_embed.grid_size
        self.num_prefix = self.vit.num_prefix_tokens

    @staticmethod
    @abstractmethod
    def require(vit: nn.Module, model: str) -> None:
        """Raise ValueError when this family would encode the timm model wrongly."""

    @abstractmethod
    def begin(self, images: Tensor) -> tuple[Tensor, Grid]:
        """The input of the first block [B, P + N, D] for images [B, C, H, W], and the grid of patches."""

    @abstractmethod
    def outputs(self, x: Tensor, grid: Grid) -> Iterator[Tensor]:
        """The output of every block [B, P + N, D] for the input of the first, and the grid of its patches."""

    # ---------------------------------------------------------------- by name

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        side: int = outline(model).patch_embed.patch_size[0]
        return side

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        return not pool.startswith("cls") or outline(model).cls_token is not None

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        absent = {"window": "windows", "zero_init": "norms that may begin at zero", "stride": "stages to dilate"}
        if (what := absent.get(name)) and value is not None:
            raise ValueError(f"'{others['model']}' has no {what}: leave it out, found {value}")
        if name in ("depth", "heads") and isinstance(value, tuple):
            raise ValueError(f"'{others['model']}' has no stages: expected one number, found {list(value)}")
        if name == "heads" and value and (width := others.get("width")) and width % value:
            raise ValueError(f"{value} heads do not divide a width of {width}: set one that does")
        if name == "positions" and value not in (*cls.positions, "learned"):
            instead = f"{', '.join(cls.positions)} or learned"
            raise ValueError(f"'{others['model']}' has no {value} positions: expected {instead}")
        if name == "rope_rescale" and value and not cls.positions[0].startswith("rope"):
            raise ValueError(f"'{others['model']}' has no rotary positions: leave {name} out, found {value}")
        if name == "drop_path_skip" and value:
            cls._check_skipping(others)
        positions = others.get("positions", "relative")
        if name == "relative_tables" and changed and not positions.startswith("relative"):
            raise ValueError(f"positions are {positions}, which have no tables: leave it out, found {value}")

    @classmethod
    def _check_skipping(cls, others: Mapping[str, Any]) -> None:
        from timm.models import vision_transformer

        block, rate = type(outline(others["model"]).blocks[0]), others.get("drop_path", 0.0)
        if block is not vision_transformer.Block:
            raise ValueError(
                f"the blocks of '{others['model']}' are timm's {block.__name__}, which cannot leave out images: set "
                "drop_path_skip: false, or take a plain vit_*"
            )
        if rate <= LEAST:
            raise ValueError(
                f"drop_path_skip needs a drop_path above {LEAST:g}, found {rate:g}: raise it, or set false"
            )

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = {NAMES.get(name, name): fields[name] for name in FIELDS}
        told |= {"qkv_bias": None if fields["qkv_bias"] else False}
        told |= {"no_embed_class": True if fields["registers"] else None}
        return {name: value for name, value in told.items() if value is not None}

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        import timm

        told = {**(cls.headless if not classes else {}), **arguments}
        eps = told.pop("norm_eps", None)
        vit = timm.create_model(model, num_classes=classes, drop_path_rate=drop_path, **told)
        if eps is not None:  # timm takes classes of norms, and no eps
            set_eps_(vit, eps)
        return vit

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        told = for_timm(arguments)
        if pool in cls.patch_pools:
            told |= {"global_pool": TIMM_POOLS[pool], cls.norm_after_pool: False}
        if pool == "cls":
            told["global_pool"] = TIMM_POOLS[pool]
        return InTimm(told.setdefault("global_pool", "token"), told)

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        side: int = vit.patch_embed.patch_size[0]
        # without the pixels at the edge that timm leaves out where patches do not divide its size
        return {"img_size": [side * patches for patches in vit.patch_embed.grid_size], "patch_size": side}

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """See `Encoder`; positions are resampled bicubically to the grid of the timm model."""
        weights = super().fitted(weights, old, model)
        if (table := weights.get("pos_embed")) is None:
            return weights
        prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        patches = resample(table[:, prefix:], old, model.patch_embed.grid_size)
        return {**weights, "pos_embed": torch.cat([table[:, :prefix], patches], dim=1)}

    @classmethod
    def linears(cls, model: Any) -> list[tuple[nn.Module, tuple[str, ...]]]:
        return super().linears(model.blocks)

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        found = model.get_intermediate_layers(images, n=blocks, reshape=True, return_prefix_tokens=True, norm=True)
        pairs = found if model.num_prefix_tokens else [(maps, maps.flatten(2).mT[:, :0]) for maps in found]
        read = [(prefix, maps.flatten(2).mT, tuple(maps.shape[-2:])) for maps, prefix in pairs]
        return [Tokens(*one, torch.cat(one[:2], dim=1)) for one in read]

    # ---------------------------------------------------------------- one encoder

    @property
    def image_size(self) -> Grid:
        rows, columns = self.native_grid
        return rows * self.patch_size, columns * self.patch_size

    @property
    def depth(self) -> int:
        return len(self.vit.blocks)

    @property
    def has_class_token(self) -> bool:
        return self.vit.cls_token is not None

    def fields(self) -> dict[str, Any]:
        told = {name: self.arguments.get(NAMES.get(name, name)) for name in FIELDS}
        told |= {"patch_size": self.patch_size, "qkv_bias": told["qkv_bias"] is not False}
        return {**super().fields(), **told, "registers": told["registers"] or None}

    @property
    def blocks_in_python(self) -> str:  # type: ignore[override]
        """See `Encoder`; timm gives no pairs where there are no tokens before the patches."""
        if not self.num_prefix:
            return "blocks = [(x, None) for x in model.get_intermediate_layers(images, n={n}, norm=True)]"
        return "blocks = model.get_intermediate_layers(images, n={n}, return_prefix_tokens=True, norm=True)"

    def grid(self, images: Tensor) -> Grid:
        """(rows, columns) of patches in images [B, C, H, W]. Raises ValueError when the patch size does not divide."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch size {self.patch_size} does not divide images of {height}x{width} pixels")
        return height // self.patch_size, width // self.patch_size

    def embed(self, patches: Tensor) -> Tensor:
        """Tokens [B, K, D] of patches [B, K, p * p * C], without positions.

        The patch convolution as a matrix product, so that hidden patches cost nothing.
        """
        projection = self.vit.patch_embed.proj
        weight = projection.weight.permute(0, 2, 3, 1).flatten(1)
        return self.vit.patch_embed.norm(F.linear(patches, weight, projection.bias))

    def finish(self, x: Tensor, grid: Grid) -> Tokens:
        """The output of a block through the final norm."""
        x = self.vit.norm(x)
        return Tokens(x[:, : self.num_prefix], x[:, self.num_prefix :], grid, x)

    def prefix(self, images: Tensor, norm: nn.Module | None = None) -> Tensor:
        if norm is None:
            return super().prefix(images)
        x, grid = self.begin(images)
        (x,) = deque(self.outputs(x, grid), maxlen=1)
        found: Tensor = norm(x[:, : self.num_prefix])
        return found

    def shared_bias(self) -> Tensor | None:
        """The term that all blocks add to their products of queries and keys [heads, N, N]; None = none."""
        return None

    def rotations(self, grid: Grid) -> Sequence[Tensor | None]:
        """The rotary positions of every block's patches, sines and cosines; None = there are none."""
        return [None] * self.depth

    def stages(self, images: Tensor) -> list[Tensor]:
        """See `Encoder`: the patches after every block, without the final norm."""
        x, grid = self.begin(images)
        return [x[:, self.num_prefix :].mT.unflatten(2, grid) for x in self.outputs(x, grid)]

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        if wrong := [block for block in blocks if block not in range(-self.depth, self.depth)]:
            raise ValueError(f"'{self.model}' has blocks 0 to {self.depth - 1}, found {wrong[0]}")
        wanted = [range(self.depth)[block] for block in blocks]
        x, grid = self.begin(images)
        found = {number: self.finish(x, grid) for number, x in enumerate(self.outputs(x, grid)) if number in wanted}
        return [found[number] for number in wanted]

    def attention(self, images: Tensor) -> Tensor:
        from timm.layers import AttentionRope
        from timm.models import beit, eva, vision_transformer

        block = self.vit.blocks[-1]
        standard: list[Any] = [(family.Block, family.Attention) for family in (vision_transformer, beit)]
        standard += [(eva.EvaBlock, attention) for attention in (eva.EvaAttention, AttentionRope)]
        attention = getattr(block, "attn", None)
        if not any(isinstance(block, kind) and type(attention) is inner for kind, inner in standard):
            raise ValueError(f"the attention of '{self.model}' cannot be shown: its blocks are {type(block).__name__}")
        x, grid = self.begin(images)
        for output in islice(self.outputs(x, grid), self.depth - 1):
            x = output
        return attention_map(block.attn, block.norm1(x), self.shared_bias(), self.rotations(grid)[-1])

    def looks(self, images: Tensor, tokens: Tokens) -> tuple[Tensor, str] | None:
        """See `Encoder`: of the class token; without one, of a pooling by attention, else the mean over all patches
        that ask."""
        by_class_token, prefix = self.vit.cls_token is not None, self.num_prefix
        if not by_class_token and (pooled := self._pooling_looks(tokens)) is not None:
            return pooled, "attention of the pooling, which reads the last block"
        try:
            weights = self.attention(images)
        except ValueError:
            return None
        if by_class_token:
            return weights[:, :, 0, prefix:], "attention of the class token in the last block"
        words = "attention in the last block that a patch gets from all patches on average (there is no class token)"
        return weights[:, :, prefix:, prefix:].mean(2), words

    def _pooling_looks(self, tokens: Tokens) -> Tensor | None:
        from timm.layers import AttentionPoolLatent

        if not isinstance(pool := getattr(self.vit, "attn_pool", None), AttentionPoolLatent):
            return None
        with_prefix = getattr(self.vit, "pool_include_prefix", True)  # an Eva has no choice
        weights = pool_map(pool, tokens.raw if with_prefix else tokens.patches)
        return weights[..., self.num_prefix if with_prefix else 0 :]

    def layer_of(self, name: str) -> int:
        """As MAE's `util/lr_decay.py`; the norm in front of the blocks is an embedding's, as in timm."""
        if name in EMBEDDINGS or name.startswith(("patch_embed.", "norm_pre.")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.depth + 1

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        if scheme in SCHEMES:
            SCHEMES[scheme](self.vit, **settings)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        """See `Encoder`. With a pooling of patches a backbone that learns gets a new norm after pooling and loses its
        own (MAE's fine-tuning); a frozen one keeps its own before pooling."""
        norm = {self.norm_after_pool: not frozen} if pool in self.patch_pools else {}
        return {**self.arguments, "global_pool": TIMM_POOLS[pool], **norm, "img_size": list(size)}

    def configure_(self, fields: Mapping[str, Any]) -> None:
        from timm.layers import DropPath

        for block in self.vit.blocks if fields["drop_path_uniform"] else ():
            block.drop_path1, block.drop_path2 = DropPath(fields["drop_path"]), DropPath(fields["drop_path"])
        if fields["drop_path_skip"]:
            skip_dropped_(self.vit.blocks)


@cache
def outline(model: str) -> Any:
    """A timm transformer by name without a head, on the meta device; with a single block where its blocks are alike."""
    import timm

    with without_values():
        try:
            return timm.create_model(model, num_classes=0, depth=1)
        except AssertionError:  # it counts the heads of every block
            return timm.create_model(model, num_classes=0)


def normed_after(vit: Any) -> bool:
    """Whether a timm model has its final norm after the pooling instead of before."""
    return not isinstance(vit.fc_norm, nn.Identity)


def fill_in(tokens: Tensor, mask: PatchMask, fill: Fill) -> Tensor:
    """Tokens [B, N, D] with the hidden ones replaced by `fill`, broadcast."""
    assert fill is not None, "replace= needs the token to fill in"
    return torch.where(mask.hidden.unsqueeze(-1), fill.to(tokens.dtype), tokens)
