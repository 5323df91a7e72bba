"""Maps of where an encoder looks: its attention, or the norms of its features where it has none that can be shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating

NORM = "norm of the features at every position of the last map"


class Attention(NamedTuple):
    """Maps of images.

    Attributes:
        maps: [B, M, rows, columns] float32, at least 0, in no unit.
        names: of the M maps: the mean of all heads, then each head; of norms a single one.
        how: the kind of maps, in words.
    """

    maps: Tensor
    names: tuple[str, ...]
    how: str


@torch.no_grad()
def of(encoder: Encoder, images: Tensor) -> Attention:
    """Where an encoder looks in normalised images [B, C, H, W]; it is in evaluation mode meanwhile.

    The attention of the class token over the patches (DINO, Caron et al., ICCV 2021, figure 1). Without a class token,
    that of the pooling where the network pools by attention, else the mean over all patches that ask. Networks whose
    attention cannot be shown, such as CNNs, have the L2 norm of the features at every position.

    Raises UserError when the output is one vector, without positions.
    """
    with evaluating(encoder):
        tokens = encoder(images)
        check_positions(encoder, tokens)
        found = encoder.looks(images, tokens)
    if found is None:
        return Attention(_placed(tokens.patches.float().norm(dim=2).unsqueeze(1), tokens), ("norm",), NORM)
    heads, how = found
    maps = torch.cat([heads.mean(1, keepdim=True), heads], dim=1).float()
    names = ("mean", *(f"head {head + 1}" for head in range(heads.shape[1])))
    return Attention(_placed(maps, tokens), names, how)


def check_positions(encoder: Encoder, tokens: Tokens) -> None:
    """Raise UserError when the tokens of an encoder are no map."""
    if tokens.grid == (1, 1):
        raise UserError(f"{encoder.model} gives one vector for an image of this size: there are no positions to show")


def _placed(maps: Tensor, tokens: Tokens) -> Tensor:
    """Values of patches [B, M, N] as maps [B, M, rows, columns]."""
    return maps.unflatten(2, tokens.grid)
