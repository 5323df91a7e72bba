"""Maps of where an encoder looks: its attention, or the norms of its features where it has none that can be shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating

NORM = "norm of the features at every position of {map}"
FEWEST = 9  # positions of a map that is worth showing


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
        found = encoder.looks(images, tokens)
        if found is None:
            last = last_map(encoder, images, tokens)
            which = "the last map" if last.shape[2:] == tokens.grid else "the deepest map with enough positions"
            return Attention(last.float().norm(dim=1, keepdim=True), ("norm",), NORM.format(map=which))
    heads, how = found
    maps = torch.cat([heads.mean(1, keepdim=True), heads], dim=1).float()
    names = ("mean", *(f"head {head + 1}" for head in range(heads.shape[1])))
    return Attention(maps.unflatten(2, tokens.grid), names, how)


def last_map(encoder: Encoder, images: Tensor, tokens: Tokens) -> Tensor:
    """The last map of an encoder [B, D, rows, columns], its patches; where it has less than `FEWEST` positions, as of
    small images, the map of the deepest stage that has so many.

    Raises UserError when there is no map of more than one position.
    """
    last = tokens.patches.mT.unflatten(2, tokens.grid)
    if tokens.grid[0] * tokens.grid[1] >= FEWEST:
        return last
    enough = [stage for stage in encoder.stages(images) if stage.shape[2] * stage.shape[3] >= FEWEST]
    if not enough and tokens.grid == (1, 1):
        raise UserError(
            f"{encoder.model} gives one vector for an image of this size: there are no positions to show. Use a larger "
            "size."
        )
    return enough[-1] if enough else last
