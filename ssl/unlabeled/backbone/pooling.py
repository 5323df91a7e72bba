"""How an encoder's tokens become features: class token, mean or maximum of patches, of one block or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Pool, Tokens
from unlabeled.backbone.families.cnn import ConvEncoder
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Encode
from unlabeled.nn.modes import evaluating

How = Literal["cls", "mean", "max"]


class FeatureSpec(NamedTuple):
    """Features that a protocol reads: how tokens become one vector, and of how many of the last blocks.

    `cls` and `mean` of several blocks are concatenated, the last block's last; so are `mean` and `max` of each block in
    `mean_max`. `cls_mean` is the class tokens of all, then the mean of the patches of the last (iBOT's and DINOv2's
    linear probes).
    """

    pool: Pool
    blocks: int = 1


class Part(NamedTuple):
    """A piece of features: a vector read out of one block's tokens, blocks counted from the end and from 1."""

    block: int
    how: How


def parts(wanted: FeatureSpec) -> list[Part]:
    """What features consist of, in order."""
    blocks = range(wanted.blocks, 0, -1)
    if wanted.pool == "cls_mean":
        return [*(Part(block, "cls") for block in blocks), Part(1, "mean")]
    if wanted.pool == "mean_max":
        return [part for block in blocks for part in (Part(block, "mean"), Part(block, "max"))]
    return [Part(block, wanted.pool) for block in blocks]


def check(encoder: Encoder, wanted: FeatureSpec) -> None:
    """Raise UserError when the encoder has no such features."""
    if wanted.pool.startswith("cls") and not encoder.has_class_token:
        raise UserError(
            f"{encoder.model} has no class token. Take the mean of its patches: --pool mean (evaluate.pool=mean)."
        )
    if isinstance(encoder, ConvEncoder) and wanted.blocks > 1:
        raise UserError(
            f"of the CNN {encoder.model} the last map alone is read: expected blocks=1, found {wanted.blocks}."
        )
    if wanted.blocks > encoder.depth:
        raise UserError(f"{encoder.model} has {encoder.depth} blocks, found blocks={wanted.blocks}. Ask for fewer.")


def reader(encoder: Encoder, pieces: Sequence[Part]) -> Encode:
    """A function from images [B, C, H, W] to some pieces of their features, side by side [B, len(pieces) * D].

    Evaluation mode, no gradients; the encoder gets its mode back, part by part, after every call.
    """
    deepest = max(part.block for part in pieces)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with evaluating(encoder):
            # the forward pass may be compiled
            tokens = [encoder(images)] if deepest == 1 else encoder.intermediate(images, range(-deepest, 0))
            return read(tokens, pieces)

    return encode


def read(blocks: Sequence[Tokens], pieces: Sequence[Part]) -> Tensor:
    """Pieces of features side by side [B, len(pieces) * D], out of the tokens of the last blocks."""
    return torch.cat([_vector(blocks[-part.block], part.how) for part in pieces], dim=1)


def _vector(tokens: Tokens, how: How) -> Tensor:
    return tokens.patches.amax(1) if how == "max" else tokens.pool(how)


def encoder_features(encoder: Encoder, pool: Pool, blocks: int = 1) -> Encode:
    """A function from images [B, C, H, W] to features [B, D] of one kind, see `reader`.

    Raises:
        UserError: the encoder has no such features.
    """
    wanted = FeatureSpec(pool, blocks)
    check(encoder, wanted)
    return reader(encoder, parts(wanted))


class Pixels(nn.Module):
    """Takes the place of an encoder: a picture's only token, class token and patch in one, is its pixels."""

    model, depth, has_class_token, default_pool = "raw pixels", 1, True, "cls"

    def forward(self, images: Tensor) -> Tokens:
        """Images [B, C, H, W] as [B, 1, C * H * W]."""
        pixels = images.flatten(1).unsqueeze(1)
        return Tokens(pixels, pixels, (1, 1))
