"""LeJEPA's loss, number by number in double precision, and a set of it in the layout of the official numbers."""

from __future__ import annotations

import cmath
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def statistic(sample: list[float], knots: int, t_max: float) -> float:
    """Epps-Pulley of one sample by the trapezoid rule over [-t_max, t_max], times its size."""
    step = t_max / (knots - 1)

    def distance(t: float) -> float:
        found = sum(cmath.exp(1j * t * x) for x in sample) / len(sample)
        return abs(found - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    ends = [(distance(step * j) + distance(step * (j + 1))) / 2 * step for j in range(knots - 1)]
    return 2 * sum(ends) * len(sample)


def statistics(z: Tensor, directions: Tensor, knots: int, t_max: float) -> Tensor:
    """The statistic of embeddings [V, B, D] along directions [D, K]: [V, K]."""
    found = [[statistic((view @ k).tolist(), knots, t_max) for k in directions.T] for view in z]
    return torch.tensor(found, dtype=torch.float64)


def invariance(z: Tensor, centres: int | None = None) -> float:
    """The mean squared distance of embeddings [V, B, D] from the mean of all views, or of the first ones."""
    total = 0.0
    for column in z.flatten(1).T.tolist():
        mean = sum(column[:centres]) / len(column[:centres])
        total += sum((x - mean) ** 2 for x in column)
    return total / z.numel()


def loss(z: Tensor, directions: Tensor, knots: int, t_max: float, weight: float) -> float:
    """The loss of embeddings [V, B, D]."""
    spread = statistics(z, directions, knots, t_max).mean().item()
    return (1 - weight) * invariance(z) + weight * spread


def write_set(folder: Path, shape: tuple[int, int, int], slices: int, knots: int, t_max: float, weight: float) -> None:
    """A set of embeddings [V, B, D] of other sizes and settings; its gradient is by differences."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(shape, generator=generator).double() * 1.3 + 0.2
    first, own = (
        torch.randn(shape[2], k, generator=torch.Generator().manual_seed(n)) for n, k in ((0, slices), (9, 6))
    )
    first, own = ((drawn / drawn.norm(dim=0)).double() for drawn in (first, own))
    settings = first, knots, t_max
    found, t = statistics(z, *settings), torch.linspace(0, t_max, knots, dtype=torch.float64)
    widths = torch.full_like(t, 2 * t_max / (knots - 1))
    widths[0] = widths[-1] = t_max / (knots - 1)
    gradient = torch.zeros(z.numel(), dtype=torch.float64)
    for place in range(z.numel()):
        moved = torch.zeros_like(gradient)
        moved[place] = 1e-5
        above, below = (loss(z + sign * moved.view(shape), *settings, weight) for sign in (1, -1))
        gradient[place] = (above - below) / 2e-5
    tensors = {
        "in/projections": z,
        "in/directions_step0": first,
        "in/directions_minimal": own,
        "grad/projections": gradient.view(shape),
        "out/quadrature_t": t,
        "out/quadrature_phi": (-t.square() / 2).exp(),
        "out/quadrature_weights": widths * (-t.square() / 2).exp(),
        "out/per_view_and_slice": found,
        "out/sigreg": found.mean(),
        "out/statistic_step0": found.mean(),
        "out/sigreg_flattened": statistics(z.flatten(0, 1).unsqueeze(0), *settings).mean(),
        "out/sigreg_minimal": statistics(z, own, 5, 2.0).mean(),
        "out/invariance": torch.tensor(invariance(z)),
        "out/loss": torch.tensor(loss(z, *settings, weight)),
    }
    config = {"num_slices": slices, "n_points": knots, "t_max": t_max, "lambda": weight}
    config["minimal"] = {"knots": 5, "t_max": 2.0, "slices": 6}  # type: ignore[assignment]
    folder.mkdir()
    stored = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "loss.safetensors", {"config": json.dumps(config)})
