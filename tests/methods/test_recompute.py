"""Every method with blocks computed twice, and in micro-batches: the same steps, or a reason by name."""

from __future__ import annotations

from typing import Any

import torch
from every_method import START, batch_of, build, every_method
from timm.layers import DropPath
from torch import Tensor

from unlabeled.data.batch.batch import Batch
from unlabeled.nn.mixing import Mix
from unlabeled.nn.recompute import recompute_, recomputed
from unlabeled.pretrain.method import Method


def two_steps(name: str, twice: bool) -> dict[str, Tensor]:
    """Losses, gradients, weights, statistics and random state after two steps."""
    method, batch = build(name).train(), rows(batch_of(name), 0, 4)
    if twice:
        assert recomputed(method, "blocks"), "no block was found"
        recompute_(method, "blocks")
    torch.manual_seed(1)
    found: dict[str, Tensor] = {}
    for step in range(2):
        output = method(batch, START)
        output.loss.backward()
        found |= {f"{key} {step}": value for key, value in {**output.metrics, "loss": output.loss.detach()}.items()}
        for key, parameter in method.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} of {key}"] = parameter.grad
                parameter.data.sub_(0.1 * parameter.grad)
                parameter.grad = None
        method.after_step(START)
    return {**found, **method.state_dict(), "random state": torch.get_rng_state()}


@every_method
def test_blocks_computed_twice_are_the_same(name: str) -> None:
    one, other = two_steps(name, False), two_steps(name, True)
    assert one.keys() == other.keys()
    assert not [key for key, tensor in one.items() if not torch.equal(tensor, other[key])]


def rows(batch: Batch, first: int, last: int) -> Batch:
    """Some pictures of a batch."""

    def taken(tensor: Tensor) -> Tensor:
        return tensor[:, first:last]

    views = [
        view._replace(pixels=taken(view.pixels), mask=None if view.mask is None else view.mask.map(taken))
        for view in batch.views
    ]
    mix = None if batch.mix is None else Mix(*(tensor[first:last] for tensor in batch.mix))
    return batch._replace(views=views, labels=batch.labels[first:last], index=batch.index[first:last], mix=mix)


def gradients(name: str, parts: int) -> tuple[Method, dict[str, Tensor]]:
    """Gradients of a step in so many micro-batches, without dropped paths, and the method after it."""
    method, batch = build(name).train(), rows(batch_of(name), 0, 4)
    for part in method.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
    size = len(batch.labels) // parts
    for first in range(0, len(batch.labels), size):
        (method(rows(batch, first, first + size), START).loss / parts).backward()
    method.after_step(START)
    return method, {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


@every_method
def test_micro_batches_make_the_same_step_or_the_method_says_why_not(name: str) -> None:
    """Teachers and centres, which are buffers, included."""
    (whole, expected), (parts, found) = gradients(name, 1), gradients(name, 2)
    statistics = whole.batch_statistics()
    if statistics:
        far = [(found[key] - gradient).abs().max() > 0.01 * gradient.abs().max() for key, gradient in expected.items()]
        assert any(far), f"nothing depends on {statistics}"
        return
    close: Any = torch.testing.assert_close
    for key, gradient in expected.items():
        close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    for one, two in zip(whole.buffers(), parts.buffers(), strict=True):
        close(two, one, rtol=1e-5, atol=1e-6)
