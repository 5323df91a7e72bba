"""Drop path that leaves out the images that it drops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.nn.droppath import add_branch
from unlabeled.nn.recompute import recompute_

SMALL: dict[str, Any] = {"model": "vit_tiny_patch16_224", "patch_size": 8, "width": 24, "depth": 3, "heads": 2}
SKIPPING = {**SMALL, "drop_path": 0.4, "drop_path_uniform": True, "drop_path_skip": True}


@pytest.mark.parametrize(("rate", "kept"), [(0.3, 7), (0.4, 6), (0.99, 1), (0.05, 9)])
def test_a_fixed_share_of_the_images_gets_the_branch(rate: float, kept: int) -> None:
    x, seen = torch.zeros(10, 2, 3), list[int]()

    def branch(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return torch.ones_like(rows)

    torch.manual_seed(0)
    for _ in range(5):
        added = add_branch(x, branch, rate)[:, 0, 0]
        assert sorted(added.tolist()) == pytest.approx([0.0] * (10 - kept) + [10 / kept] * kept)
    assert set(seen) == {kept}


def test_the_mean_over_draws_is_the_whole_branch() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(8, 2, 4), torch.randn(4, 4)
    mean = torch.stack([add_branch(x, lambda rows: rows @ weight, 0.4) for _ in range(4000)]).mean(0)
    # the deviation of a draw is at most |branch| sqrt(r / (1 - r)), r = 1/2 kept of 8
    torch.testing.assert_close(mean, x + x @ weight, rtol=0, atol=0.25)


def test_an_image_is_what_its_blocks_make_of_it() -> None:
    """Against a naive loop over images, with gradients."""
    encoder = EncoderConfig(**SKIPPING).build((16, 16)).train()
    torch.manual_seed(2)
    x = torch.randn(5, 5, 24, requires_grad=True)
    block = encoder.vit.blocks[1]
    torch.manual_seed(3)
    found = block(x)
    torch.manual_seed(3)
    first, second = (torch.randperm(5)[:3].tolist() for _ in range(2))
    images = []
    for i in range(5):
        row = x[i : i + 1]
        row = row + (5 / 3 * block.attn(block.norm1(row)) if i in first else 0)
        images.append(row + (5 / 3 * block.mlp(block.norm2(row)) if i in second else 0))
    expected = torch.cat(images)
    torch.testing.assert_close(found, expected)
    ours, naive = (torch.autograd.grad((y * y).sum(), [x, block.mlp.fc1.weight]) for y in (found, expected))
    torch.testing.assert_close(ours, naive)


def test_nothing_changes_but_training() -> None:
    """Weights, names, evaluation and blocks with a low rate are those of timm."""
    grows = {**SKIPPING, "drop_path_uniform": False}
    skipping = EncoderConfig(**grows).build((16, 16))
    usual = EncoderConfig(**{**grows, "drop_path_skip": False}).build((16, 16))
    assert [type(one) is type(other) for one, other in zip(skipping.vit.blocks, usual.vit.blocks, strict=True)] == [
        *(True, False, False),  # rates 0, 0.2, 0.4
    ]
    assert {type(block).__name__ for block in skipping.vit.blocks} == {"Block"}
    usual.load_state_dict(skipping.state_dict())
    images = torch.randn(3, 3, 16, 16)
    for encoder in (skipping, usual):
        encoder.eval()
    torch.testing.assert_close(skipping(images).patches, usual(images).patches, rtol=0, atol=0)


def test_blocks_that_are_computed_twice_drop_the_same_images() -> None:
    once = EncoderConfig(**SKIPPING).build((16, 16)).train()
    twice = copy.deepcopy(once)
    recompute_(torch.nn.ModuleList([twice]), "blocks")
    images, gradients = torch.randn(4, 3, 16, 16), []
    for encoder in (once, twice):
        torch.manual_seed(4)
        encoder(images).patches.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_bf16_keeps_the_stream_in_float32() -> None:
    encoder = EncoderConfig(**SKIPPING).build((16, 16)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(encoder(torch.randn(4, 3, 16, 16)).patches).all()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({**SMALL, "drop_path": 0.1, "drop_path_skip": True}, "needs a drop_path above 0.1, found 0.1"),
        ({**SMALL, "drop_path_skip": True}, "needs a drop_path above 0.1, found 0"),
        ({"model": "beit_base_patch16_224", "drop_path": 0.3, "drop_path_skip": True}, "cannot leave out images"),
        ({"model": "resnet10t", "drop_path": 0.3, "drop_path_skip": True}, "has no drop_path_skip"),
        ({"model": "eva02_tiny_patch14_224", "drop_path": 0.3, "drop_path_skip": True}, "cannot leave out images"),
    ],
)
def test_networks_that_cannot_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EncoderConfig(**fields)


def test_its_attention_can_be_shown() -> None:
    encoder = EncoderConfig(**SKIPPING).build((16, 16)).eval()
    assert encoder.attention(torch.randn(2, 3, 16, 16)).shape[0] == 2
