"""Heads: structure, ranges of their initialisation, and what is refused."""

from __future__ import annotations

import pytest
import torch
from graphs import counted
from torch import nn

from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.heads import DistillHead, Prototypes, mlp
from unlabeled.nn.regions import compiling


def test_mlp_is_numbered_as_moco_v3() -> None:
    projector = mlp((8, 16, 16, 4))
    kinds = [type(layer).__name__ for layer in projector]
    assert kinds == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    assert [key for key in projector.state_dict() if key.startswith("7.")] == [
        "7.running_mean",
        "7.running_var",
        "7.num_batches_tracked",
    ]
    assert not [key for key, _ in projector.named_parameters() if key.endswith("bias") and key[0] in "036"]
    assert len(mlp((8, 16, 4), last_norm=False)) == 4


def test_prototypes_are_weight_norm() -> None:
    torch.manual_seed(0)
    layer = Prototypes(6, 10, freeze_gain=False)
    nn.init.uniform_(layer.weight_g, 0.5, 2.0)
    x = torch.randn(3, 6)
    for row in range(3):
        for k in range(10):
            direction = layer.weight_v[k] / layer.weight_v[k].square().sum().sqrt()
            torch.testing.assert_close(layer(x)[row, k], layer.weight_g[k, 0] * (direction @ x[row]))


def test_head_begins_in_the_official_ranges() -> None:
    torch.manual_seed(0)
    head = DistillHead(384, 1000, freeze_gain=True, patch_prototypes=50)
    assert [head.mlp[i].weight.std().item() for i in (0, 2, 4)] == pytest.approx([0.02] * 3, rel=0.02)
    assert not any(head.mlp[i].bias.any() for i in (0, 2, 4))
    bound = 1 / 256**0.5
    assert 0.99 * bound < head.last_layer.weight_v.abs().max() <= bound
    assert head.last_layer.weight_g.eq(1).all() and not head.last_layer.weight_g.requires_grad
    x = torch.randn(5, 384)
    assert head(x).shape == (5, 1000) and head.patches(x).shape == (5, 50)
    assert head(x).abs().max() <= 1, "with gains of 1, logits are cosines"


def test_shared_prototypes_serve_patches_too() -> None:
    head, x = DistillHead(8, 12, hidden=16, bottleneck=4), torch.randn(3, 8)
    assert torch.equal(head(x), head.patches(x))


def test_batch_norm_is_torchs() -> None:
    ours, torchs, x = BatchNorm(5), nn.BatchNorm1d(5), torch.randn(7, 5)
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    assert torch.equal(ours.eval()(x), torchs.eval()(x))


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2, found 1: raise train.batch_size"):
        BatchNorm(4)(torch.randn(1, 4))


def test_compiling_a_head_reaches_patches_too() -> None:
    torch.manual_seed(0)
    head, x = DistillHead(6, 10, hidden=8, bottleneck=4, patch_prototypes=5), torch.randn(3, 6)
    expected = head(x), head.patches(x)
    with counted() as graphs, compiling(True):
        torch.testing.assert_close(head.patches(x), expected[1])
        assert graphs.made == ["DistillHead.embed", "Prototypes.forward"]
        torch.testing.assert_close(head(x), expected[0])
        assert graphs.made == ["DistillHead.embed", "Prototypes.forward", "Prototypes.forward"]


@pytest.mark.parametrize("patch_prototypes", [None, 50])
def test_both_is_the_head_on_each(patch_prototypes: int | None) -> None:
    head = DistillHead(16, 1000, hidden=32, bottleneck=8, patch_prototypes=patch_prototypes)
    classes, patches = torch.randn(3, 16), torch.randn(7, 16)
    for found, expected in zip(head.both(classes, patches), (head(classes), head.patches(patches)), strict=True):
        torch.testing.assert_close(found, expected)


def test_each_view_is_a_batch_of_its_own_for_norms() -> None:
    once, twice = mlp((8, 16, 4)), mlp((8, 16, 4))
    twice.load_state_dict(once.state_dict())
    first, second = torch.randn(5, 8), 3 + torch.randn(5, 8)
    expected = torch.cat([twice(first), twice(second)])
    torch.testing.assert_close(once(torch.cat([first, second]), views=2), expected)
    torch.testing.assert_close(once.state_dict(), twice.state_dict())
