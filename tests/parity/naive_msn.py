"""A second set of numbers for MSN's losses, computed step by step in double precision: see `naive.py`."""

from __future__ import annotations

import math

import torch
from parity.naive import Numbers, Set, Tensors
from torch import Tensor


def softmax(logits: Tensor) -> Tensor:
    risen = (logits - logits.max()).exp()
    return risen / risen.sum()


def balanced(shares: Tensor, iterations: int = 3) -> Tensor:
    """Rows [B, K] as columns and rows are scaled in turn."""
    shares = shares / shares.sum()
    for _ in range(iterations):
        shares = shares / shares.sum(0) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / len(shares)
    return shares * len(shares)


def msn(seed: int = 0) -> Set:
    draw, batch, views, prototypes, width, temperature, sharpening = Numbers(seed), 4, 5, 23, 6, 0.15, 0.4
    inputs = {"anchors": draw(views * batch, width).requires_grad_(), "prototypes": draw(prototypes, width)}
    inputs["prototypes"].requires_grad_()
    targets, found = draw(batch, width), Tensors()
    units = inputs["prototypes"] / inputs["prototypes"].norm(dim=1, keepdim=True)
    own = torch.stack([softmax(units @ x / x.norm() / temperature) for x in inputs["anchors"]])
    sharp = torch.stack([softmax(units @ x / x.norm() / temperature) ** (1 / sharpening) for x in targets]).detach()
    sharp = sharp / sharp.sum(1, keepdim=True)
    mean = own.mean(0)
    memax = math.log(prototypes) + (mean * mean.log()).sum()
    for case, aims in (("plain", sharp), ("sinkhorn", balanced(sharp))):
        loss = torch.stack([-(aims[i % batch] * row.log()).sum() for i, row in enumerate(own)]).mean()
        found |= {f"out/{case}_loss": loss, f"out/{case}_memax": memax, f"out/{case}_targets": aims.repeat(views, 1)}
        slopes = torch.autograd.grad(loss + memax, list(inputs.values()), retain_graph=True)
        found |= {f"grad/{case}_{name}": slope for name, slope in zip(inputs, slopes, strict=True)}
    found |= {"out/sinkhorn_entropy": -(own * own.log()).sum(1).mean(), "in/targets": targets}
    found |= {f"in/{name}": tensor for name, tensor in inputs.items()}
    return Set("loss.safetensors", found, {"tau": temperature, "T": sharpening})
