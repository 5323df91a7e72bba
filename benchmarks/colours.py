"""How far fused colours are from exact ones, and what they save, on one core.

    python benchmarks/colours.py pictures.tar [--pictures 64] [--rounds 5] [--json]

Crops of 224 px. First one operation at a time at its strongest, then what MoCo v3's and DINO's views draw. Differences
are in levels of 255 before normalising, over all pixels and channels; times are of colours and normalising, in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from common import finish, machine, on_one_core, seconds, table
from torch import Tensor

from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.percrop import recolour_and_normalize
from unlabeled.data.view.photometric import Photometric
from unlabeled.data.view.recolour import recolour
from unlabeled.data.view.views import View
from unlabeled.pretrain.methods import dino, mocov3

SIDE = 224
ONE = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
STRONGEST = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
VIEWS: dict[str, View] = {
    "mocov3": mocov3.Config().views[0],
    "dino": dino.GLOBAL_1,
}
Differences = dict[str, float]


def crops(path: str, count: int) -> Tensor:
    """Crops [N, 3, 224, 224] uint8 of the first pictures."""
    source = Opened(Files(path=path)).train
    view, rng = View(size=SIDE, scale=(0.2, 1.0)), np.random.default_rng(0)
    return torch.cat([view.sample(source.image(i), rng, 16).pixels for i in range(min(count, len(source)))])


def single(what: str, factor: float, count: int) -> Photometric:
    """One operation for all crops."""
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1)
    factors[:, ONE[what]] = factor
    return Photometric(factors, torch.arange(4).repeat(count, 1), None, None, None)


def cases(count: int) -> Iterator[tuple[str, Photometric]]:
    """What is compared."""
    for what, factors in STRONGEST.items():
        for factor in factors:
            yield f"{what} {factor:g}", single(what, factor, count)
    for name, view in VIEWS.items():
        colours = view.colours(np.random.default_rng(0).random((count, 13)))
        yield name, colours._replace(blur=None, solarize=None)


def differences(pixels: Tensor, colours: Photometric) -> Differences:
    """Of fused from exact colours, in levels."""
    exact, fused = (recolour(pixels / 255, colours._replace(fused=fused)) * 255 for fused in (False, True))
    away = (fused - exact).abs()
    return {
        "mean": round(away.mean().item(), 2),
        "above_8": round((away > 8).float().mean().item(), 4),
        "max": round(away.max().item(), 1),
        "change": round((exact - pixels).abs().mean().item(), 2),
    }


def speed(pixels: Tensor, view: View, rounds: int) -> dict[str, float]:
    """Milliseconds a crop, exact and fused in turn."""
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.device("cpu"))
    drawn = view.colours(np.random.default_rng(0).random((len(pixels), 13)))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for fused, spent in times.items():
            colours = drawn._replace(fused=fused)
            spent.append(
                seconds(
                    lambda colours=colours: recolour_and_normalize(pixels, colours, normalize.scale, normalize.shift)  # type: ignore[misc]
                )
            )
    exact_ms, fused_ms = (1000 * median(times[fused]) / len(pixels) for fused in (False, True))
    return {"exact_ms": round(exact_ms, 3), "fused_ms": round(fused_ms, 3), "ratio": round(exact_ms / fused_ms, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print two tables, and one object with `--json`."""
    chosen = on_one_core("Fused colours against exact ones.", 64, arguments)
    pixels = crops(chosen.data, chosen.pictures)
    found = {name: differences(pixels, colours) for name, colours in cases(len(pixels))}
    spent = {name: speed(pixels, view, chosen.rounds) for name, view in VIEWS.items()}
    print(machine())
    print(tabulated("levels", found))
    print(tabulated("with blur", spent))
    finish(chosen, {"differences": found, "speed": spent})


def tabulated(title: str, rows: dict[str, Any]) -> str:
    """A row per case."""
    head = (title, *next(iter(rows.values())))
    return table(head, [(name, *(f"{value:g}" for value in row.values())) for name, row in rows.items()])


if __name__ == "__main__":
    main()
