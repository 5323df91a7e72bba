"""A second set of official numbers for Soft Teacher, of other sizes: one box after the other, see `naive.py`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from parity.naive import Numbers, Tensors
from parity.naive_discovery import write
from torch import Tensor


def boxes_of(draw: Numbers, count: int) -> Tensor:
    """Boxes with scores: [count, 5]."""
    found = []
    for _ in range(count):
        left, top, width, height = (abs(float(v)) * 30 + 1 for v in draw(4))
        found.append([left, top, left + width, top + height, float(draw(1).sigmoid())])
    return torch.tensor(found, dtype=torch.float64)


def moved(box: list[float], matrix: Tensor, height: int, width: int) -> list[float]:
    corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    points = [matrix @ torch.tensor([x, y, 1.0], dtype=torch.float64) for x, y in corners]
    xs = [min(max(float(p[0] / p[2]), 0), width) for p in points]
    ys = [min(max(float(p[1] / p[2]), 0), height) for p in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def write_set(root: Path, seed: int = 3) -> None:
    folder, draw = root / "softteacher", Numbers(seed)
    weights(folder, draw, classes=3, rows=9)
    boxes(folder, draw, height=60, width=70)
    jitter(folder, draw, counts=(4, 2, 6), classes=2, times=7, share=0.1)
    average(folder, draw, momentum=0.6, steps=5)


def weights(folder: Path, draw: Numbers, classes: int, rows: int) -> None:
    logits, p = draw(rows, classes + 1).requires_grad_(), draw(rows, classes + 1).softmax(1)
    labels = torch.tensor([row % (classes + 1) for row in range(rows)])
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for row, label in enumerate(labels.tolist()):
        weight = float(p[row, classes]) if label == classes else 1.0
        total = total - weight * (logits[row, label] - logits[row].exp().sum().log())
        count += weight
    loss = total / max(count, 1)
    (grad,) = torch.autograd.grad(loss, logits)
    tensors = {"in/scores": logits.detach(), "in/labels": labels, "in/teacher_probabilities": p}
    tensors |= {"out/loss": loss.detach(), "grad/scores": grad}
    write(folder / "background_weights.safetensors", tensors, {"classes": classes})


def boxes(folder: Path, draw: Numbers, height: int, width: int) -> None:
    given, score, least = boxes_of(draw, 8), 0.4, 12
    one, other = (torch.eye(3, dtype=torch.float64) + draw(3, 3, scale=0.1) for _ in range(2))
    for matrix in (one, other):
        matrix[2] = torch.tensor([0.0, 0.0, 1.0])
    matrix = other @ one.inverse()
    out = [[*moved(box, matrix, height, width), box[4]] for box in given.tolist()]
    rows = [i for i, b in enumerate(given.tolist()) if b[4] > score and b[2] - b[0] > least and b[3] - b[1] > least]
    tensors = {"in/boxes": given, "in/teacher_matrix": one, "in/student_matrix": other, "out/matrix": matrix}
    tensors |= {"out/boxes": torch.tensor(out, dtype=torch.float64), "out/filtered_rows": torch.tensor(rows)}
    tensors["out/filtered"] = given[rows, :4]
    assert 0 < len(rows) < len(given), "another seed: all pass, or none"
    settings = {"shape": [height, width], "score": score, "min_size": least}
    write(folder / "boxes.safetensors", tensors, settings)


def jitter(folder: Path, draw: Numbers, counts: tuple[int, ...], classes: int, times: int, share: float) -> None:
    tensors, threshold = Tensors(), 0.08
    for image, count in enumerate(counts):
        given, labels = boxes_of(draw, count), torch.tensor([row % classes for row in range(count)])
        noise, refined = draw(times, count, 4), draw(times * count, 4 * classes, scale=2.0)
        out, unsteady = torch.zeros(times, count, 5, dtype=torch.float64), torch.zeros(count, 4, dtype=torch.float64)
        for n, (label, box) in enumerate(zip(labels.tolist(), given.tolist(), strict=True)):
            sides = [max(box[2] - box[0], 1), max(box[3] - box[1], 1)] * 2
            for t in range(times):
                refined[t * count + n, 4 * label : 4 * label + 4] += given[n, :4]
                for k in range(4):
                    out[t, n, k] = box[k] + share * sides[k] * noise[t, n, k]
                out[t, n, 4] = box[4]
            own = [refined[t * count + n, 4 * label : 4 * label + 4].tolist() for t in range(times)]
            means = [sum(one[k] for one in own) / times for k in range(4)]
            across = [max(means[2] - means[0], 1), max(means[3] - means[1], 1)] * 2
            for k in range(4):
                variance = sum((one[k] - means[k]) ** 2 for one in own) / (times - 1)
                unsteady[n, k] = math.sqrt(variance) / across[k]
        kept = [n for n in range(count) if sum(unsteady[n].tolist()) / 4 < threshold]
        tensors |= {f"in/boxes{image}": given, f"in/labels{image}": labels, f"in/noise{image}": noise}
        tensors |= {f"in/refined{image}": refined, f"out/jittered{image}": out, f"out/uncertainty{image}": unsteady}
        tensors[f"out/kept{image}"] = given[kept, :4]
    settings = {"n": list(counts), "C": classes, "times": times, "frac": share, "threshold": threshold}
    write(folder / "jitter.safetensors", tensors, settings)


def average(folder: Path, draw: Numbers, momentum: float, steps: int) -> None:
    pairs, momenta, teacher = [], [], torch.zeros(4, dtype=torch.float64)
    for step in range(steps):
        student, m = draw(4), min(momentum, 1 - 1 / (step + 1))
        teacher = m * teacher + (1 - m) * student
        pairs.append(torch.stack([student, teacher]))
        momenta.append(m)
    tensors = {"out/momentum": torch.tensor(momenta, dtype=torch.float64), "out/weights": torch.stack(pairs)}
    tensors["out/teacher_running_mean"] = torch.zeros(4, dtype=torch.float64)
    write(folder / "mean_teacher.safetensors", tensors, {"momentum": momentum})
