"""The reader of features: class token, mean or maximum of patches, of one block or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Pool, Tokens
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating

How = Literal["cls", "mean", "max", "own"]
Encode = Callable[[Tensor], Tensor]  # from images [B, C, H, W] to features [B, D]

# `features` from `blocks`, a list of (patches, prefix tokens): model cards
READ = {
    "cls": "features = torch.cat([cls[:, 0] for _, cls in blocks], 1)",
    "mean": "features = torch.cat([patches.mean(1) for patches, _ in blocks], 1)",
    "cls_mean": "features = torch.cat([*(cls[:, 0] for _, cls in blocks), blocks[-1][0].mean(1)], 1)",
    "own": "features = model.forward_head(model.forward_features(images), pre_logits=True)",
    "mean_max": "features = torch.cat([x for p, _ in blocks for x in (p.mean(1), p.amax(1))], 1)",
}


class FeatureSpec(NamedTuple):
    """A kind of features: the pooling of tokens, and the number of the last blocks.

    `cls` and `mean` of several blocks are concatenated, the last block's last; so are `mean` and `max` of each block in
    `mean_max`; `own` is of the last block alone. `cls_mean` is the class tokens of all, then the mean of the patches of
    the last (iBOT's and DINOv2's linear probes).
    """

    pool: Pool
    blocks: int = 1


class Part(NamedTuple):
    """A piece of features: a vector read out of one block's tokens, blocks counted from the end and from 1."""

    block: int
    how: How


def parts(wanted: FeatureSpec) -> list[Part]:
    """The pieces of a kind of features, in order."""
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
    if wanted.pool == "own" and wanted.blocks > 1:
        raise UserError(
            f"{encoder.model} pools its last block by itself, found blocks={wanted.blocks}. Take the mean of the "
            "patches: --pool mean (evaluate.pool=mean)."
        )
    if wanted.blocks > encoder.readable:
        several = f"{encoder.model} has {encoder.readable} blocks"
        words = several if encoder.readable > 1 else f"of {encoder.model} the last map alone is read"
        raise UserError(f"{words}, found blocks={wanted.blocks}. Ask for fewer.")


def in_python(encoder: Encoder, wanted: FeatureSpec) -> str:
    """Lines of Python that make `features` of `images` from a timm `model` alone."""
    return f"{encoder.blocks_in_python.format(n=wanted.blocks)}\n{READ[wanted.pool]}"


def reader(encoder: Encoder, pieces: Sequence[Part]) -> Encode:
    """A function from images [B, C, H, W] to pieces of features, concatenated [B, sum of their widths].

    It runs in evaluation mode without gradients; every part of the encoder gets its mode back after a call.
    """
    deepest = max(part.block for part in pieces)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with evaluating(encoder):
            # the forward pass may be compiled
            tokens = [encoder(images)] if deepest == 1 else encoder.intermediate(images, range(-deepest, 0))
            return read(tokens, pieces, encoder.own)

    return encode


def read(blocks: Sequence[Tokens], pieces: Sequence[Part], own: Callable[[Tokens], Tensor]) -> Tensor:
    """Pieces of features, concatenated, from the tokens of the last blocks; `own` is the network's own pooling."""

    def piece(tokens: Tokens, how: How) -> Tensor:
        if how == "own":
            return own(tokens)
        return tokens.patches.amax(1) if how == "max" else tokens.pool(how)

    return torch.cat([piece(blocks[-block], how) for block, how in pieces], dim=1)


def widths(encoder: Encoder, pieces: Sequence[Part], whole: int | None = None) -> list[int]:
    """The width of each piece of features; in proportion to a `whole` where the encoder has no width of its own."""
    each = [encoder.feature_width if how == "own" else encoder.width_of(block) for block, how in pieces]
    return each if whole is None else [width * whole // sum(each) for width in each]


def encoder_features(encoder: Encoder, pool: Pool, blocks: int = 1) -> Encode:
    """A function from images [B, C, H, W] to features [B, D], see `reader`. Raises UserError as `check` does."""
    check(encoder, wanted := FeatureSpec(pool, blocks))
    return reader(encoder, parts(wanted))


class Pixels(nn.Module):
    """Stand-in for an encoder: the only token of an image, class token and patch in one, is its pixels."""

    model, depth, readable, has_class_token, default_pool = "raw pixels", 1, 1, True, "cls"
    feature_width = 1  # all its features are as wide, whatever the image

    def forward(self, images: Tensor) -> Tokens:
        """Images [B, C, H, W] as [B, 1, C * H * W]."""
        pixels = images.flatten(1).unsqueeze(1)
        return Tokens(pixels, pixels, (1, 1))

    def width_of(self, block: int) -> int:
        """See `feature_width`."""
        return self.feature_width

    def own(self, tokens: Tokens) -> Tensor:
        """The pixels [B, C * H * W]."""
        return tokens.pool("mean")
