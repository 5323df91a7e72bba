"""A frozen network that teaches: weights at an address, its own normalisation, features without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.address import Found, find
from unlabeled.backbone.config import FromList
from unlabeled.backbone.encoder import Encoder, Pool
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.outside import PATH
from unlabeled.backbone.pooling import FeatureSpec, check, parts, read, widths
from unlabeled.backbone.weights import IMAGENET, OFFICIAL, fitted, load_encoder, preprocessing_of, weights_digest
from unlabeled.errors import UserError
from unlabeled.nn.positions import Grid
from unlabeled.paths import UserPath

SEED = 0  # of a teacher with random weights, the same in every run
Side = Annotated[int, Field(ge=1)]
Values = Annotated[tuple[float, ...], FromList, Field(min_length=1, max_length=16)]


class Seen(NamedTuple):
    """The pictures that a method receives: (height, width) in pixels, and normalisation per channel."""

    shape: Grid
    how: Preprocessing = IMAGENET


class TeacherConfig(BaseModel, frozen=True, extra="forbid"):
    """A frozen teacher in a recipe. Its address alone may stand in the place of the section."""

    weights: UserPath = Field(
        description="an export folder, METHOD:FILE.pth of an official release, timm:NAME, hf-hub:OWNER/NAME, "
        "PACKAGE.MODULE:NAME:FOLDER, or PACKAGE.MODULE:NAME, a function of yours that returns the network with its "
        "weights; scratch:timm:NAME has random weights, for trials"
    )
    size: Side | Annotated[tuple[Side, Side], FromList] | None = Field(
        None,
        description="shorter side, or [height, width], of crops as the teacher sees them, pixels; null = as they are",
    )
    pool: Pool | None = Field(
        None,
        description="its vector of a picture; null = as its export says, else its own pooling or class token where it "
        "has one, else the mean of its patches",
    )
    blocks: int | None = Field(
        None, ge=1, description="last blocks whose patches are put side by side; null = 2 of a ViT for mode dense, or 1"
    )
    mean: Values | None = Field(None, description="normalisation that it expects; null = that of its weights")
    std: Values | None = Field(None, description="the same: standard deviation")

    def shape(self, crops: Grid) -> Grid:
        """(height, width) of what it sees of crops, pixels."""
        if not isinstance(self.size, int):
            return self.size or crops
        height, width = (round(side * self.size / min(crops)) for side in crops)
        return height, width

    def build(self, seen: Seen, blocks: int) -> Teacher:
        """The teacher with its weights, for such pictures; on the meta device its outline, for which nothing but an
        export's settings is read.

        `blocks` are taken where the recipe leaves them open, as far as the network has them. Raises UserError when
        there are no such weights, or the network cannot see such pictures.
        """
        with torch.random.fork_rng(devices=()):  # the student begins as without a teacher
            found = self._found(seen)
            self._check(found, seen)
            encoder = fitted(found.encoder, self.shape(seen.shape), found.encoder.channels)
        how = found.how._replace(mean=self.mean or found.how.mean, std=self.std or found.how.std)
        own = not self.weights.startswith("timm:")  # whose pooling is that of timm's classifiers
        pool = self.pool or (how.pool if own else None) or encoder.default_pool
        depth = self.blocks or min(blocks, encoder.readable)
        for wanted in (FeatureSpec(pool), FeatureSpec("mean", depth)):
            check(encoder, wanted)
        return Teacher(encoder, how, seen.how, pool, depth)

    def _found(self, seen: Seen) -> Found:
        where, random = self.weights.removeprefix("scratch:"), self.weights.startswith("scratch:")
        outlined = torch.get_default_device().type == "meta" and not where.endswith(OFFICIAL)
        if not (outlined or random or PATH.fullmatch(where)):
            with torch.device("cpu"):
                return find(where)
        torch.manual_seed(SEED)
        told = (self.shape(seen.shape), len(seen.how.mean)) if random else ()
        how = seen.how if random else preprocessing_of(f"scratch:{where}")
        return Found(load_encoder(f"scratch:{where}", *told), how)

    def _check(self, found: Found, seen: Seen) -> None:
        """Raise UserError when the network cannot see pictures of this size, these channels or this range."""
        encoder, ranges = found.encoder, [tuple(how.value_range or ()) for how in (found.how, seen.how)]
        channels, multiple = len(seen.how.mean), encoder.crop_multiple(encoder.model, encoder.patch_size)
        if all(ranges) and ranges[0] != ranges[1]:
            raise UserError(
                f"the teacher {self.weights} was trained with data.value_range={list(ranges[0])}, found "
                f"{list(ranges[1])}. Set the same."
            )
        if encoder.channels not in (channels, 3 if channels == 1 else channels):
            raise UserError(
                f"the teacher {self.weights} sees {encoder.channels} channels, the pictures have {channels}. Name a "
                "teacher of such pictures."
            )
        height, width = shape = self.shape(seen.shape)
        if any(side % multiple for side in shape):
            near = [max(multiple, round(side / multiple) * multiple) for side in shape]
            raise UserError(
                f"the teacher {self.weights} takes sides that are multiples of {multiple} pixels, found "
                f"{height}x{width}. Set size of method.teacher to {near}, or the size of the crops."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != encoder.channels:
                raise UserError(
                    f"{name} of the teacher {self.weights}: expected {encoder.channels} values, one per channel, found "
                    f"{len(values)}."
                )


class Teacher(nn.Module):
    """A frozen encoder: always in evaluation mode, without gradients, and no part of checkpoints and exports."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder, how: Preprocessing, pictures: Preprocessing, pool: Pool, blocks: int) -> None:
        super().__init__()
        self.encoder, self.how, self.blocks = encoder.requires_grad_(False), how, blocks
        self.pieces = parts(FeatureSpec(pool))
        self.feature_width = sum(widths(encoder, self.pieces))
        self.width = sum(encoder.width_of(block) for block in range(1, blocks + 1))
        # from the normalisation of the pictures to its own
        mean, std, own_mean, own_std = (_column(v) for v in (pictures.mean, pictures.std, how.mean, how.std))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing: its weights lie at their address."""
        return {} if destination is None else destination

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Of images [B, C, H, W], normalised as the method gets them: vectors [B, D], patches [B, N, E], and the
        (rows, columns) of the patches."""
        images = images * self.scale + self.shift  # a grey picture becomes one of the teacher's channels
        if images.shape[-2:] != self.encoder.image_size:
            images = F.interpolate(images, self.encoder.image_size, mode="bicubic", antialias=True)
        blocks = (
            self.encoder.intermediate(images, range(-self.blocks, 0)) if self.blocks > 1 else [self.encoder(images)]
        )
        patches = torch.cat([tokens.patches for tokens in blocks], dim=-1)
        return read(blocks, self.pieces, self.encoder.own), patches, blocks[-1].grid

    def in_words(self) -> str:
        """The network, a digest of its weights, and what it sees: equal for equal teachers alone."""
        (height, width), hashed = self.encoder.image_size, weights_digest(self.encoder.state_dict())
        how = f"mean {_listed(self.how.mean)}, std {_listed(self.how.std)}"
        pooled = "+".join(dict.fromkeys(how for _, how in self.pieces))
        last = "the last block" if self.blocks == 1 else f"the last {self.blocks} blocks"
        network = f"{self.encoder.model} (weights {hashed}), sees {height}x{width} with {how}"
        return f"{network}; {pooled} pooling, patches of {last}"


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _listed(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
