"""Second sets of official numbers for losses, of other sizes and settings: naive computations in double precision.

Each follows what the official code computes, as plainly as can be: rows one by one, no library's loss. Gradients are
those of the naive computation.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


class Set(NamedTuple):
    """A file of a set: tensors in double precision, and settings."""

    file: str
    tensors: Tensors
    settings: dict[str, Any]


class Numbers:
    """Random tensors in double precision that single precision holds exactly."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).float().double()


def save(root: Path, method: str, one: Set) -> None:
    """Write a set's file, in single precision."""
    (root / method).mkdir(parents=True, exist_ok=True)
    tensors = {n: (t.float() if t.is_floating_point() else t).detach().contiguous() for n, t in one.tensors.items()}
    save_file(tensors, root / method / one.file, {"config": json.dumps(one.settings)})


def gradients(loss: Tensor, of: Tensors) -> Tensors:
    found = torch.autograd.grad(loss, list(of.values()))
    return dict(zip(of, found, strict=True))


# ---------------------------------------------------------------- MLPs with batch normalisation


def standardised(x: Tensor) -> Tensor:
    """Columns of x [B, D] with mean 0 and biased variance 1."""
    centred = x - x.mean(0)
    return centred / ((centred**2).mean(0) + 1e-5).sqrt()


def mlp(x: Tensor, weights: Tensors, prefix: str) -> Tensor:
    """Layers by their numbers: matrices multiply, vectors normalise and are rectified."""
    numbers = sorted({int(n.removeprefix(prefix).split(".")[0]) for n in weights if n.startswith(prefix)})
    for number in numbers:
        weight, bias = (weights.get(f"{prefix}{number}.{kind}") for kind in ("weight", "bias"))
        if weight is not None and weight.ndim == 2:
            x = x @ weight.T + (0 if bias is None else bias)
        elif weight is not None and bias is not None:
            x = (standardised(x) * weight + bias).clamp_min(0)
        else:
            x = standardised(x)
    return x


def drawn_mlp(draw: Numbers, sizes: list[int], prefix: str, bias: bool = False, last_bias: bool = False) -> Tensors:
    """Weights of linear layers with a norm after each but the last."""
    found: Tensors = {}
    for layer, (inside, outside) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        found[f"{prefix}{3 * layer}.weight"] = draw(outside, inside, scale=inside**-0.5)
        if last_bias if last else bias:
            found[f"{prefix}{3 * layer}.bias"] = draw(outside, scale=0.1)
        if not last:
            found[f"{prefix}{3 * layer + 1}.weight"] = 1 + draw(outside, scale=0.2)
            found[f"{prefix}{3 * layer + 1}.bias"] = draw(outside, scale=0.2)
    return found


def with_statistics(weights: Tensors, **bare: int) -> Tensors:
    """The same with running statistics of every norm, and of those that have no weights, by name and width."""
    norms = {n[:-7]: len(t) for n, t in weights.items() if n.endswith(".weight") and t.ndim == 1}
    norms |= bare
    fresh = {f"{n}.running_mean": torch.zeros(w) for n, w in norms.items()}
    fresh |= {f"{n}.running_var": torch.ones(w) for n, w in norms.items()}
    return {**weights, **fresh, **{f"{n}.num_batches_tracked": torch.tensor(0) for n in norms}}


def barlowtwins(seed: int = 0) -> Set:
    draw, batch, sizes, redundancy = Numbers(seed), 7, [18, 14, 11, 14, 12, 9], 0.02
    weights = drawn_mlp(draw, sizes, "projector.")
    inputs = {f"features{i}": draw(batch, sizes[0]).requires_grad_() for i in (1, 2)}
    learnt = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    first, second = (mlp(x, learnt, "projector.") for x in inputs.values())
    a, b = standardised(first), standardised(second)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(sizes[-1]):
        for j in range(sizes[-1]):
            product = (a[:, i] * b[:, j]).sum() / batch
            loss = loss + ((product - 1) ** 2 if i == j else redundancy * product**2)
    found = gradients(loss, {**inputs, **learnt})
    tensors = {f"in/{n}": t for n, t in inputs.items()} | {f"grad/{n}": t for n, t in found.items()}
    tensors |= {f"sd/{n}": t for n, t in with_statistics(weights, bn=sizes[-1]).items()}
    return Set("loss.safetensors", {**tensors, "out/loss": loss, "out/z1": first}, {"lambd": redundancy})


def vicreg(seed: int = 0) -> Set:
    draw, batch, sizes, terms = Numbers(seed), 6, [10, 16, 12, 13], {"sim": 10.0, "std": 15.0, "cov": 2.0}
    weights = drawn_mlp(draw, sizes, "projector.", bias=True)
    inputs = {f"features{i}": draw(batch, sizes[0]).requires_grad_() for i in (1, 2)}
    learnt = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    views = [mlp(x, learnt, "projector.") for x in inputs.values()]
    invariance = ((views[0] - views[1]) ** 2).sum() / views[0].numel()
    variance, covariance = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for view in views:
        centred = view - view.mean(0)
        for i in range(sizes[-1]):
            deviation = ((centred[:, i] ** 2).sum() / (batch - 1) + 1e-4).sqrt()
            variance = variance + (1 - deviation).clamp_min(0) / sizes[-1] / 2
            for j in range(sizes[-1]):
                if i != j:
                    product = (centred[:, i] * centred[:, j]).sum() / (batch - 1)
                    covariance = covariance + product**2 / sizes[-1]
    loss = terms["sim"] * invariance + terms["std"] * variance + terms["cov"] * covariance
    found = gradients(loss, {**inputs, **learnt})
    tensors = {f"in/{n}": t for n, t in inputs.items()} | {f"grad/{n}": t for n, t in found.items()}
    tensors |= {f"sd/{n}": t for n, t in with_statistics(weights).items()}
    named = {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}
    return Set("loss.safetensors", tensors | {f"out/{n}": t for n, t in named.items()}, terms)


HAIKU = {"0.weight": "linear.w", "0.bias": "linear.b", "3.weight": "linear_1.w"}
HAIKU |= {"1.weight": "batch_norm.scale", "1.bias": "batch_norm.offset"}


def haiku(weights: Tensors) -> Tensors:
    """Under Haiku's names, in its layout."""
    found = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        shaped = tensor.T if tensor.ndim == 2 else tensor[None] if rest.startswith("1.") else tensor
        found[f"{part}.{HAIKU[rest]}"] = shaped
    return found


def byol(seed: int = 0) -> Set:
    draw, batch, width, hidden, out, inner = Numbers(seed), 5, 9, 13, 8, 11

    def network() -> Tensors:
        return drawn_mlp(draw, [width, hidden, out], "projector.", bias=True) | drawn_mlp(
            draw, [out, inner, out], "predictor.", bias=True
        )

    online, target = network(), network()
    inputs = {f"features{i}": draw(batch, width).requires_grad_() for i in (1, 2)}
    learnt = {name: tensor.requires_grad_() for name, tensor in online.items()}
    queries = [mlp(mlp(x, learnt, "projector."), learnt, "predictor.") for x in inputs.values()]
    keys = [mlp(x, target, "projector.").detach() for x in inputs.values()]
    loss = torch.zeros((), dtype=torch.float64)
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for q, k in zip(query, key, strict=True):
            loss = loss + ((q / q.norm() - k / k.norm()) ** 2).sum() / batch
    found = gradients(loss, {**inputs, **learnt})
    rate, decay, momentum = 0.8, 0.02, 0.9
    weights, speed, tensors = (
        {n: t.detach().clone() for n, t in online.items()},
        dict[str, Tensor](),
        dict[str, Tensor](),
    )
    for step in (1, 2):
        for name, weight in weights.items():
            update = found[name]
            if weight.ndim > 1:
                update = update + decay * weight
                update = update * 0.001 * weight.norm() / update.norm()
            speed[name] = momentum * speed.get(name, torch.zeros_like(weight)) - rate * update
            weights[name] = weight + speed[name]
        tensors |= {f"after_lars{step}/{n}": t for n, t in haiku(weights).items()}
        if step == 1:
            share = 1 - (1 - 0.97) * (math.cos(math.pi * 7 / 25) + 1) / 2
            moved = {n: share * target[n] + (1 - share) * weights[n] for n in target}
            tensors |= {f"after_ema/{n}": t for n, t in haiku(moved).items()}
    tensors |= {f"in/{n}": t for n, t in inputs.items()} | {"out/loss": loss, "grad/features1": found["features1"]}
    tensors |= {f"grad/{n}": t for n, t in haiku({n: found[n] for n in online}).items()}
    tensors |= {f"sd_online/{n}": t for n, t in haiku(online).items()}
    tensors |= {f"sd_target/{n}": t for n, t in haiku(target).items()}
    for i in (1, 2):
        tensors |= {f"out/prediction{i}": queries[i - 1], f"out/target{i}": keys[i - 1]}
    settings = {"base_ema": 0.97, "max_steps": 25, "ema_step": 7, "wd": decay, "lars_lr": rate}
    return Set("heads.safetensors", tensors, settings)


def simsiam(seed: int = 0) -> Set:
    draw, batch, width, dim, inner = Numbers(seed), 6, 6, 12, 7
    weights = drawn_mlp(draw, [width, width, width, dim], "encoder.fc.", last_bias=True)
    weights |= drawn_mlp(draw, [dim, inner, dim], "predictor.", last_bias=True)
    weights |= {"encoder.conv.weight": draw(width, 3, 3, 3, scale=0.3)}
    weights |= {"encoder.bn.weight": 1 + draw(width, scale=0.2), "encoder.bn.bias": draw(width, scale=0.2)}
    views, frozen = [draw(batch, 3, 8, 8) for _ in range(2)], "encoder.fc.6.bias"
    learnt = {name: tensor.requires_grad_() for name, tensor in weights.items() if name != frozen}
    projected, predicted = [], []
    for view in views:
        maps = torch.nn.functional.conv2d(view, learnt["encoder.conv.weight"], stride=2, padding=1)
        pixels = standardised(maps.permute(0, 2, 3, 1).reshape(-1, width))
        pixels = (pixels * learnt["encoder.bn.weight"] + learnt["encoder.bn.bias"]).clamp_min(0)
        feature = pixels.view(batch, -1, width).mean(1)
        projected.append(standardised(mlp(feature, weights, "encoder.fc.")))
        predicted.append(mlp(projected[-1], weights, "predictor."))
    loss = torch.zeros((), dtype=torch.float64)
    for p, z in ((predicted[0], projected[1].detach()), (predicted[1], projected[0].detach())):
        for one, other in zip(p, z, strict=True):
            loss = loss - (one @ other) / one.norm() / other.norm() / batch / 2
    tensors = {f"grad/{n}": t for n, t in gradients(loss, learnt).items()} | {"out/loss": loss}
    tensors |= {f"sd/{n}": t for n, t in with_statistics(weights, **{"encoder.fc.7": dim}).items()}
    for i in (1, 2):
        tensors |= {f"in/view{i}": views[i - 1], f"out/z{i}": projected[i - 1], f"out/p{i}": predicted[i - 1]}
    return Set("model.safetensors", tensors, {"frozen": [frozen]})


# ---------------------------------------------------------------- losses of embeddings


def simdino(seed: int = 0) -> Set:
    draw, batch, views, width, eps, weight = Numbers(seed), 5, 6, 14, 0.05, 0.7
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (draw(views * batch, width), draw(2 * batch, width))]
    student, teacher = (rows.float().double().requires_grad_() for rows in unit)
    s, t = student.view(views, batch, width), teacher.detach().view(2, batch, width)
    pairs = [(s[j, row], t[i, row]) for i in range(2) for j in range(views) if i != j for row in range(batch)]
    compression = torch.stack([own @ other / own.norm() / other.norm() for own, other in pairs]).mean()
    tensors: Tensors = {"in/student": student, "in/teacher": teacher}
    for kind in (0, 1):
        rates = []
        for i in range(2):
            z = s[i] if kind == 0 else (s[i] + t[i]) / 2
            matrix = torch.eye(width, dtype=torch.float64) + width / (batch * eps) * z.T @ z
            rates.append(torch.logdet(matrix) / 2)
        expansion = torch.stack(rates).mean() * (width + batch) / (width * batch)
        loss = -weight * compression - expansion
        tensors |= {f"out/loss_type{kind}": loss, f"out/compression_type{kind}": compression}
        tensors |= {f"out/expansion_type{kind}": expansion}
        tensors |= {f"grad/student_type{kind}": torch.autograd.grad(loss, student, retain_graph=True)[0]}
    return Set("loss.safetensors", tensors, {"B": batch, "D": width, "ncrops": views, "eps": eps, "coeff": weight})
