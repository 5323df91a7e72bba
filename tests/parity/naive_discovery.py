"""Second sets of numbers for category discovery and scores of the unknown: loops in float64, see `naive.py`."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from parity.naive import Numbers, Tensors
from safetensors.torch import save_file
from torch import Tensor


def write(file: Path, tensors: Tensors, settings: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
        file,
        {"config": json.dumps(settings)},
    )


def unit(x: Tensor) -> Tensor:
    return torch.stack([row / row.norm() for row in x])


# ---------------------------------------------------------------- clusters


def matched(clusters: Tensor, classes: Tensor) -> list[bool]:
    """Whether each picture is right by the best of all matchings, which must be the only one."""
    size = int(max(clusters.max(), classes.max())) + 1
    pairs = list(zip(clusters.tolist(), classes.tolist(), strict=True))
    counts = [sum(order[cluster] == true for cluster, true in pairs) for order in permutations(range(size))]
    best = [order for order, count in zip(permutations(range(size)), counts, strict=True) if count == max(counts)]
    hits = {tuple(order[cluster] == true for cluster, true in pairs) for order in best}
    assert len(hits) == 1, "another seed: there are several best matchings"
    return list(hits.pop())


def shares(clusters: Tensor, classes: Tensor, known: int, apart: bool) -> Tensor:
    old = classes < known
    right = torch.tensor(matched(clusters, classes)).double()
    if apart:
        right = right.clone()
        for rows in (old, ~old):
            right[rows] = torch.tensor(matched(clusters[rows], classes[rows])).double()
    return torch.stack([right.mean(), right[old].mean(), right[~old].mean()])


def gcd(folder: Path, seed: int = 0, known: int = 4, k: int = 6, width: int = 5, steps: int = 50) -> None:
    """Both files: assignments of random clusters, and k-means of clouds."""
    draw, found = Numbers(seed), Tensors()
    for case, (clusters, count) in enumerate(((5, 61), (7, 83))):
        classes = torch.randint(6, (count,), generator=draw.generator)
        noisy = torch.where(draw(count) > 0.8, torch.randint(clusters, (count,), generator=draw.generator), classes)
        guess = noisy.clamp_max(clusters - 1)
        found |= {f"in/y{case}": classes, f"in/p{case}": guess}
        found |= {f"out/v{2 - apart}_{case}": shares(guess, classes, 3, bool(apart)) for apart in (0, 1)}
        found[f"out/acc{case}"] = found[f"out/v2_{case}"][0]
    write(folder / "hungarian.safetensors", found, {"seed": seed})

    centres = draw(k, width)
    true = (torch.arange(70) % 13) % k
    labels = torch.arange(3 * known) % known
    labelled = unit(centres[labels] + draw(len(labels), width, scale=0.4))
    x = unit(centres[true] + draw(len(true), width, scale=0.4))
    uniforms = torch.rand(k - known, generator=draw.generator, dtype=torch.float64)
    now = [labelled[labels == c].mean(0) for c in range(known)]
    for uniform in uniforms.tolist():
        away = [min(float(((one - c) ** 2).sum()) for c in now) for one in x]
        passed, total = 0.0, math.fsum(away)
        for i, distance in enumerate(away):
            passed += distance / total
            if passed >= uniform:
                now.append(x[i])
                break
    found = {"in/labelled": labelled, "in/labels": labels, "in/unlabelled": x, "in/uniforms": uniforms}
    found |= {"in/true": true, "out/start": torch.stack(now), **moved(labelled, labels, x, now, steps)}
    own = found["out/labels"][len(labels) :]
    found |= {f"out/acc_v{2 - apart}": shares(own, true, known, bool(apart)) for apart in (0, 1)}
    write(folder / "semi_kmeans.safetensors", found, {"seed": seed, "iters": steps})


def moved(labelled: Tensor, labels: Tensor, x: Tensor, centres: list[Tensor], steps: int) -> Tensors:
    """Lloyd's iterations, one picture after the other."""
    everything, best, iterations = torch.cat([labelled, x]), math.inf, 0
    found = Tensors()
    while iterations < steps:
        iterations += 1
        nearest = [min(range(len(centres)), key=lambda c: float(((one - centres[c]) ** 2).sum())) for one in x]
        cluster = torch.tensor([*labels.tolist(), *nearest])
        pairs = zip(everything, cluster.tolist(), strict=True)
        inertia = math.fsum(float(((one - centres[c]) ** 2).sum()) for one, c in pairs)
        means = [everything[cluster == c].mean(0) for c in range(len(centres))]
        shift = sum(float((new - old).norm()) for new, old in zip(means, centres, strict=True))
        centres = means
        if inertia < best:
            best, found = inertia, {"out/labels": cluster, "out/centers": torch.stack(means)}
        if shift**2 < 1e-4:
            break
    return {
        **found,
        "out/inertia": torch.tensor(best, dtype=torch.float64),
        "out/iterations": torch.tensor(iterations),
    }


def uno(folder: Path, seed: int = 0, pictures: int = 7, prototypes: int = 4, temperature: float = 0.2) -> None:
    """Targets by rounds of scaling, and swapped predictions of two large crops and a small one."""
    draw, epsilon, rounds, heads, width = Numbers(seed), 0.1, 4, 2, 6
    cosines = unit(draw(pictures, 3)) @ unit(draw(prototypes, 3)).T
    shares = (cosines / epsilon).exp()
    for _ in range(rounds):
        shares = torch.stack([column / column.sum() for column in shares.T], dim=1)
        shares = torch.stack([row / row.sum() for row in shares])
    logits, targets = draw(3, heads, pictures, width).requires_grad_(), draw(3, heads, pictures, width).softmax(-1)
    losses = []
    for head in range(heads):
        pairs = [(seen, taught) for taught in range(2) for seen in range(3) if seen != taught]
        rows = [(logits[seen, head, i], targets[taught, head, i]) for seen, taught in pairs for i in range(pictures)]
        losses.append(torch.stack([-(aim * (row / temperature).log_softmax(0)).sum() for row, aim in rows]).mean())
    [slope] = torch.autograd.grad(torch.stack(losses).mean(), [logits])
    tensors = {"in/cosines": cosines, "out/assignments": shares, "in/logits": logits.detach(), "in/targets": targets}
    tensors |= {"out/loss": torch.stack(losses).detach(), "grad/logits": slope}
    write(
        folder / "targets.safetensors", tensors, {"epsilon": epsilon, "iterations": rounds, "temperature": temperature}
    )


# ---------------------------------------------------------------- scores of the unknown


def ood(folder: Path, seed: int = 0, width: int = 6, classes: int = 3, k: int = 4, directions: int = 2) -> None:
    draw, temperature = Numbers(seed), 1.5
    labels = torch.arange(11 * classes) % classes
    centres = draw(classes, width, scale=1.5)
    train = centres[labels] + draw(len(labels), width)
    test = torch.cat([centres[torch.arange(9) % classes] + draw(9, width), draw(7, width, scale=2.0)])
    weight, bias = draw(classes, width), draw(classes)
    logits = [[float(w @ x + b) for w, b in zip(weight, bias, strict=True)] for x in test]
    means = [train[labels == c].mean(0) for c in range(classes)]
    own = covariance([x - means[c] for x, c in zip(train, labels.tolist(), strict=True)])
    whole = covariance([x - train.mean(0) for x in train])
    near = [min(float((x - m) @ torch.linalg.solve(own, x - m)) for m in means) for x in test]
    background = [float((x - train.mean(0)) @ torch.linalg.solve(whole, x - train.mean(0))) for x in test]
    units = unit(train)
    found: dict[str, list[float]] = {
        "msp": [max(map(math.exp, row)) / sum(map(math.exp, row)) for row in logits],
        "maxlogit": [max(row) for row in logits],
        "energy": [temperature * math.log(sum(math.exp(one / temperature) for one in row)) for row in logits],
        "knn": [-sorted(float(((x / x.norm() - u) ** 2).sum()) for u in units)[k - 1] for x in test],
        "mahalanobis": [-one for one in near],
        "relative_mahalanobis": [b - one for one, b in zip(near, background, strict=True)],
        "vim": vim(weight, bias, train, test, directions),
    }
    tensors = {f"out/{name}": torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
    tensors |= {f"out/auroc_fpr95_{name}": measures(found[name], 9) for name in ("energy", "knn")}
    tensors["out/predicted"] = torch.tensor([row.index(max(row)) for row in logits])
    tensors |= {"in/train": train, "in/train_labels": labels, "in/test": test, "in/weight": weight, "in/bias": bias}
    write(folder / "scores.safetensors", tensors, {"T": temperature, "k": k, "vim_dim": directions, "n": 9})


def covariance(rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.outer(row, row) for row in rows]).mean(0)


def vim(weight: Tensor, bias: Tensor, train: Tensor, test: Tensor, directions: int) -> list[float]:
    """The part beyond the first eigenvectors is what is left after those are taken off."""
    origin = -(weight.T @ torch.linalg.solve(weight @ weight.T, bias))
    values, vectors = torch.linalg.eigh(covariance([x - origin for x in train]))
    first = [vectors[:, i] for i in values.argsort(descending=True)[:directions].tolist()]

    def residual(x: Tensor) -> float:
        rest = x - origin
        for vector in first:
            rest = rest - (rest @ vector) * vector
        return float(rest.norm())

    largest = sum(float((weight @ x + bias).max()) for x in train)
    scale = largest / sum(residual(x) for x in train)
    return [float((weight @ x + bias).exp().sum().log()) - scale * residual(x) for x in test]


def measures(scores: list[float], known: int) -> Tensor:
    """AUROC by counting pairs; areas under precision over recall, threshold by threshold; the share of known pictures
    that are flagged as soon as 95 % of the unknown ones are."""
    inside, outside = scores[:known], scores[known:]
    pairs = [0.5 if a == b else float(a < b) for a in outside for b in inside]
    flagged = [
        sum(b <= limit for b in inside) / len(inside)
        for limit in sorted(scores)
        if sum(a <= limit for a in outside) / len(outside) >= 0.95
    ]
    areas = (area(inside, outside), area([-a for a in outside], [-b for b in inside]))
    return torch.tensor([sum(pairs) / len(pairs), *areas, flagged[0]], dtype=torch.float64)


def area(right: list[float], wrong: list[float]) -> float:
    recall, precision, total = 0.0, 1.0, 0.0
    for limit in sorted({*right, *wrong}, reverse=True):
        hits, misses = sum(one >= limit for one in right), sum(one >= limit for one in wrong)
        now = hits / len(right), hits / (hits + misses)
        total += (now[0] - recall) * (now[1] + precision) / 2
        recall, precision = now
    return total
