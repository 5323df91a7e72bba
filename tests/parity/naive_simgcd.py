"""A second set of numbers for SimGCD: picture by picture in float64, see `naive.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from parity.naive import Numbers, Tensors, gradients
from safetensors.torch import save_file
from torch import Tensor

PICTURES, INPUT, WIDTH, CLASSES, KNOWN, HIDDEN, BOTTLENECK = 7, 4, 6, 5, 2, 9, 3
SETTINGS = {
    "sup_weight": 0.6,
    "student_temp": 0.2,
    "teacher_temp_at_epoch_0": 0.09,
    "teacher_temp": 0.03,
    "warmup_teacher_temp_epochs": 4,
    "contrastive_temperature": 0.5,
    "supcon_temperature": 0.3,
}
EPOCHS = 9


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / a.norm() / b.norm()


def of_others(rows: list[Tensor], temperature: float, alike: list[list[int]]) -> Tensor:
    """The mean over rows of the cross-entropy of their positives, by number, among all rows but themselves."""
    losses = []
    for i, row in enumerate(rows):
        shares = {j: (cosine(row, other) / temperature).exp() for j, other in enumerate(rows) if j != i}
        total = torch.stack(list(shares.values())).sum()
        losses.append(-torch.stack([(shares[j] / total).log() for j in alike[i]]).mean())
    return torch.stack(losses).mean()


def swapped(logits: Tensor, teacher: float, student: float) -> Tensor:
    """Of logits [2, B, K]."""
    losses = []
    for i in range(logits.shape[1]):
        for taught, seen in ((0, 1), (1, 0)):
            target = (logits[taught, i] / teacher).exp().detach()
            losses.append(-(target / target.sum() * (logits[seen, i] / student).log_softmax(0)).sum())
    return torch.stack(losses).mean()


def temperature(epoch: int) -> float:
    start, end, last = SETTINGS["teacher_temp_at_epoch_0"], SETTINGS["teacher_temp"], 3
    return end if epoch > last else start + (end - start) * epoch / last


def write(folder: Path, seed: int = 0) -> None:
    draw, c = Numbers(seed), SETTINGS
    x, labelled = draw(2, PICTURES, INPUT), [0, 2, 3, 6]
    y = torch.zeros(PICTURES, dtype=torch.int64)
    y[labelled] = torch.tensor([1, 0, 1, 1])
    weights: Tensors = {"0.0.weight": draw(WIDTH, INPUT), "0.0.bias": draw(WIDTH)}
    for number, (source, target) in enumerate(((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, BOTTLENECK))):
        weights |= {f"1.mlp.{2 * number}.weight": draw(target, source), f"1.mlp.{2 * number}.bias": draw(target)}
    weights["1.last_layer.weight_v"] = draw(CLASSES, WIDTH)
    for tensor in weights.values():
        tensor.requires_grad_()

    def layer(name: str, row: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]

    def projected(row: Tensor) -> Tensor:
        for name in ("1.mlp.0", "1.mlp.2"):
            row = torch.nn.functional.gelu(layer(name, row))
        return layer("1.mlp.4", row)

    features = [layer("0.0", row).tanh() for view in x for row in view]
    rows = [torch.stack([cosine(row, one) for one in weights["1.last_layer.weight_v"]]) for row in features]
    logits, seen = torch.stack(rows).unflatten(0, (2, PICTURES)), [projected(row) for row in features]
    p = (logits / c["student_temp"]).softmax(-1).flatten(0, 1).mean(0)
    memax = math.log(CLASSES) + sum(one * one.log() for one in p)
    supervised = [
        -(view[i] / c["student_temp"]).log_softmax(0)[y[i]] for view in logits for i in labelled
    ]  # both crops of each
    contrast = of_others(seen, c["contrastive_temperature"], [[(i + PICTURES) % len(seen)] for i in range(len(seen))])
    chosen, names = [seen[i + v * PICTURES] for v in (0, 1) for i in labelled], [int(y[i]) for i in labelled] * 2
    alike = [[j for j, other in enumerate(names) if other == one and j != i] for i, one in enumerate(names)]
    supcon = of_others(chosen, c["supcon_temperature"], alike)
    cluster = swapped(logits, temperature(0), c["student_temp"])

    def loss(weight: float) -> Tensor:
        alone, taught = cluster + weight * memax + contrast, torch.stack(supervised).mean() + supcon
        return (1 - c["sup_weight"]) * alone + c["sup_weight"] * taught

    found: Tensors = {"in/x1": x[0], "in/x2": x[1], "in/y": y, "in/labelled": torch.zeros_like(y)}
    found["in/labelled"][labelled] = 1
    found |= {f"sd/{name}": tensor.detach() for name, tensor in weights.items()}
    found["sd/1.last_layer.weight_g"] = torch.ones(CLASSES, 1, dtype=torch.float64)
    found |= {f"out/loss_memax{weight:g}": loss(weight) for weight in (0, 2, 3.5)}
    found |= {f"grad/{name}": slope for name, slope in gradients(loss(2.0), weights).items()}
    found |= {"out/logits": torch.stack(rows), "out/proj": torch.stack(seen)}
    found |= {"out/contrastive": contrast, "out/supcon": supcon}
    found["out/teacher_temps"] = torch.tensor([temperature(epoch) for epoch in range(EPOCHS)], dtype=torch.float64)
    for epoch in (0, 2, 8):
        found[f"out/cluster_epoch{epoch}"] = swapped(logits, temperature(epoch), c["student_temp"])
    folder.mkdir(parents=True)
    whole = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}
    save_file(whole, folder / "step.safetensors", {"config": json.dumps(c)})
