"""BEiT-style transformers (Bao et al. 2022): relative positions, layer scale, no bias on keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Fill, Hidden, Hiding, InTimm, Pool, Tensors, Tokens, for_timm, module_of
from unlabeled.backbone.transformer import EXPORTED, Transformer, fill_in, normed_after
from unlabeled.nn.patches import patchify
from unlabeled.nn.positions import Grid

# rows of a table after those of offsets between patches: class to patch, patch to class, class to class
EXTRA = 3

TABLE = "relative_position_bias_table"
SHARED = f"rel_pos_bias.{TABLE}"
AFTER = {"global_pool": "avg"}  # of timm: the mean, then the norm
SWITCHES = ("use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias")


class Beit(Transformer):
    """Wraps a timm `Beit`. Its positions are relative, in a table that all blocks share or one in each, or absolute as
    a ViT's (SimMIM's `USE_APE`), or both.

    The rule of the table's index is timm's, which is BEiT's and SimMIM's: (row offset + rows - 1) (2 columns - 1) +
    (column offset + columns - 1), offsets from key to query. It encodes images of its native size only, all patches at
    once.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"replace"})
    names: ClassVar[str] = "beit_*"
    positions: ClassVar[tuple[str, ...]] = ("relative", "relative_learned")
    patch_pools: ClassVar[tuple[str, ...]] = ("mean",)
    norm_after_pool: ClassVar[str] = "use_fc_norm"
    headless: ClassVar[Mapping[str, Any]] = {"global_pool": "token"}  # timm's default pools before the norm
    exported: ClassVar[Mapping[str, Any]] = {**EXPORTED, **dict.fromkeys(SWITCHES, (bool | None, None))}

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if module_of(model) == "beit" else 0

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        from timm.models.beit import Beit

        if type(vit) is not Beit:
            raise ValueError(f"expected a timm Beit, found '{model}'")

    @classmethod
    def takes_any_size(cls, model: str) -> bool:
        return False

    @classmethod
    def default_positions(cls, model: str) -> str:
        return "relative"

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        relative, tables = fields["positions"].startswith("relative"), fields["relative_tables"]
        return {
            **super().arguments_of(fields, pooled),
            **({} if fields["positions"] == "relative" else {"use_abs_pos_emb": True}),
            "use_rel_pos_bias": relative and tables != "shared",
            "use_shared_rel_pos_bias": relative and tables != "blocks",
        }

    @classmethod
    def most_patches(cls, arguments: Mapping[str, Any]) -> int:
        """See `Encoder`. An index of relative positions holds the square of the number of all patches."""
        relative = arguments.get("use_rel_pos_bias") or arguments.get("use_shared_rel_pos_bias")
        return 64 if relative else super().most_patches(arguments)

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """See `Encoder`; tables are resampled by BEiT's rule, and copied into every block of a model that has them."""
        return super().fitted(fit_tables(weights, old, model), old, model)

    def fields(self) -> dict[str, Any]:
        shared, own = self.vit.rel_pos_bias is not None, TABLE in dict(self.vit.blocks[0].attn.named_parameters())
        relative = "relative" if self.vit.pos_embed is None else "relative_learned"
        told = {"positions": relative if shared or own else "learned"}
        if shared or own:
            told["relative_tables"] = "both" if shared and own else "shared" if shared else "blocks"
        return {**super().fields(), **told}

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        if not _normed_after(arguments):
            return super().in_timm(model, arguments, pool)
        # weights of the norm after the pooling have another name than those of the norm before
        return InTimm("avg", for_timm(arguments))

    @classmethod
    def without_head(cls, model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().without_head(model, arguments), **(AFTER if _normed_after(arguments) else {})}

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        return {**super().arguments_from(vit), **(AFTER if normed_after(vit) else {})}

    @property
    def pools_itself(self) -> bool:
        return normed_after(self.vit)

    @property
    def pools(self) -> tuple[str, ...]:
        return ("cls", "mean", *(["own"] if self.pools_itself else []))

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        """See `Transformer`; a shared table is copied into every block (SimMIM's fine-tuning), a norm after pooling
        that the encoder has is kept."""
        if pool == "own":
            told = {**self.arguments, "img_size": list(size)}
        else:
            kept = {"use_fc_norm": True} if self.pools_itself else {}
            told = {**super().classifier_arguments(pool, size, frozen), **kept}
        tables = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
        return {**told, **({} if self.vit.rel_pos_bias is None else tables)}

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if drop is not None:
            raise ValueError(f"'{self.model}' cannot drop patches. Use a vit_* model.")
        x, grid = self.begin(images, replace, fill)
        for output in self.outputs(x, grid):
            x = output
        return self.finish(x, grid)

    def begin(self, images: Tensor, replace: Hidden = None, fill: Fill = None) -> tuple[Tensor, Grid]:
        grid = self.grid(images)
        self.check_native(images)
        x = self.embed(patchify(images, self.patch_size))
        if replace is not None:
            x = fill_in(x, replace, fill)

        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x if self.vit.pos_embed is None else x + self.vit.pos_embed, grid

    def outputs(self, x: Tensor, grid: Grid) -> Iterator[Tensor]:
        bias = self.shared_bias()
        for block in self.vit.blocks:
            x = block(x, shared_rel_pos_bias=bias)
            yield x

    def shared_bias(self) -> Tensor | None:
        return None if self.vit.rel_pos_bias is None else self.vit.rel_pos_bias()


def _normed_after(arguments: Mapping[str, Any]) -> bool:
    """Whether an encoder's arguments ask for timm's own pooling: the mean, then the norm."""
    return arguments.get("global_pool") == "avg" and "use_fc_norm" not in arguments


def fit_tables(weights: dict[str, Tensor], old: Grid, model: Any) -> dict[str, Tensor]:
    """Weights of a timm `Beit` with tables for another one: for its grid, and in every block where it has them there.

    SimMIM pretrains with one table and fine-tunes with a copy of it in every block (official `utils.py`); here added to
    the block's own where it has one. `old` is (rows, columns) of the weights' patches, `model` has the new ones.
    """
    fitted = {
        name: resize_table(t, old, model.patch_embed.grid_size) if TABLE in name else t for name, t in weights.items()
    }
    if model.rel_pos_bias is None and SHARED in fitted:
        table = fitted.pop(SHARED)
        own = {name: fitted.get(name, 0) for name in (f"blocks.{i}.attn.{TABLE}" for i in range(len(model.blocks)))}
        fitted |= {name: table + beside for name, beside in own.items()}
    return fitted


def resize_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resample a table [(2 rows - 1)(2 columns - 1) + 3, heads] from one grid of patches to another.

    BEiT's rule, which SimMIM uses too: a cubic spline through offsets that a geometric progression spreads, near ones
    densely (official `load_pretrained`). The last three rows, of the class token, are kept.
    """
    if old == new:
        return table
    offsets, extra = table[:-EXTRA].double(), table[-EXTRA:]
    rows, columns = (_spline(_spread(2 * a - 1, 2 * b - 1), b).to(table.device) for a, b in zip(old, new, strict=True))
    image = offsets.unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1))
    carried = torch.einsum("yr,xc,rch->yxh", rows, columns, image).flatten(0, 1)
    return torch.cat([carried.to(table.dtype), extra])


def _spread(source: int, target: int) -> Tensor:
    """The places of `source` offsets among `target` ones: 0, +-1, +-(1 + q) and so on to the largest."""
    if source == target:
        return torch.arange(source, dtype=torch.float64) - source // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2
        low, high = (low, ratio) if too_far else (ratio, high)
    steps = ratio ** torch.arange(source // 2, dtype=torch.float64)
    positive = steps.cumsum(0)
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])


def _spline(x: Tensor, side: int) -> Tensor:
    """The matrix [2 side - 1, n] that evaluates the cubic spline through n values at x, at whole offsets.

    Not-a-knot at both ends, constant beyond them, as scipy's `interp2d` does.
    """
    n, width = len(x), x.diff()
    assert n >= 4, "a cubic spline needs four points: the grid has fewer than 3 patches in a row"
    slopes = torch.diff(torch.eye(n, dtype=x.dtype), dim=0) / width.unsqueeze(1)

    # second derivatives at the points: continuous slopes inside, equal third derivatives across the outermost points
    system, right = torch.zeros(n, n, dtype=x.dtype), torch.zeros(n, n, dtype=x.dtype)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = torch.stack([width[i - 1], 2 * (width[i - 1] + width[i]), width[i]])
        right[i] = 6 * (slopes[i] - slopes[i - 1])
    for row, i in ((0, 0), (n - 1, n - 3)):
        system[row, i : i + 3] = torch.stack([width[i + 1], -width[i] - width[i + 1], width[i]])
    bends = torch.linalg.solve(system, right)

    at = torch.arange(1 - side, side, dtype=x.dtype).clamp(x[0], x[-1])
    left = (torch.searchsorted(x, at, right=True) - 1).clamp(0, n - 2)
    a, b, h = (x[left + 1] - at).unsqueeze(1), (at - x[left]).unsqueeze(1), width[left].unsqueeze(1)
    linear = (a * torch.eye(n, dtype=x.dtype)[left] + b * torch.eye(n, dtype=x.dtype)[left + 1]) / h
    return linear + ((a**3 / h - a * h) * bends[left] + (b**3 / h - b * h) * bends[left + 1]) / 6
