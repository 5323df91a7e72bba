"""Principal components of the patches of several images together, as colours (DINOv2, Oquab et al. 2024, figure 1)."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.look.attention import last_map
from unlabeled.nn.modes import evaluating

COLOURS = 3
LOW, HIGH = 0.02, 0.98  # quantiles of a component that become black and full colour


@torch.no_grad()
def of(encoder: Encoder, images: Tensor) -> Tensor:
    """The first three components of the patches of normalised images [B, C, H, W]: [B, rows, columns, 3] float64.

    They are those of all images' patches together, see `principal`; of small images those of an earlier map, see
    `last_map`.

    Raises UserError when the output has no positions, or is not finite.
    """
    with evaluating(encoder):
        patches = last_map(encoder, images, encoder(images)).movedim(1, -1)  # [B, rows, columns, D]
    if not torch.isfinite(patches).all():
        raise UserError("the encoder's output is not finite. Take an earlier checkpoint or export.")
    return principal(patches.flatten(0, 2), COLOURS).unflatten(0, patches.shape[:3])


def principal(x: Tensor, count: int) -> Tensor:
    """The first principal components of vectors [n, D]: their centred coordinates [n, count], float64 on the CPU.

    The largest entry of each direction is positive, so that nothing depends on the solver. Components beyond the rank
    are 0.
    """
    x = x.detach().cpu().double()
    x = x - x.mean(0)
    wide = x.shape[1] > len(x)
    _, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    vectors = vectors.flip(1)[:, :count]
    directions = torch.nn.functional.normalize(x.T @ vectors, dim=0) if wide else vectors
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scores = x @ (directions * torch.where(largest < 0, -1.0, 1.0))
    return torch.nn.functional.pad(scores, (0, count - scores.shape[1]))


def aligned(scores: Tensor, before: Tensor) -> Tensor:
    """Components [..., 3] in the order and with the signs in which they are most like earlier ones of the same patches.

    The sum of absolute correlations decides; each stays a principal component.
    """
    now, then = (_standard(tensor.flatten(0, -2)) for tensor in (scores, before))
    alike = then.T @ now  # [earlier, now]
    places = torch.arange(len(alike))
    orders = [torch.tensor(order) for order in permutations(range(len(alike)))]
    order = max(orders, key=lambda order: float(alike[places, order].abs().sum()))
    return scores[..., order] * torch.where(alike[places, order] < 0, -1.0, 1.0)


def _standard(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x - x.mean(0), dim=0)


def colours(scores: Tensor) -> Tensor:
    """Components [..., 3] as uint8 colours, each scaled by its own quantiles; one without spread is grey."""
    flat = scores.flatten(0, -2)
    low, high = torch.quantile(flat, torch.tensor([LOW, HIGH], dtype=flat.dtype), dim=0)
    spread = high - low
    shares = torch.where(spread > 0, (scores - low) / spread, 0.5)
    return (255 * shares).round().clamp(0, 255).to(torch.uint8)
