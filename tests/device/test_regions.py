"""Regions compiled one by one: graphs per step, and none after the first, by a backend that counts."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from every_method import recipe_of
from graphs import check_compiled, counted
from torch import nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch import loader
from unlabeled.data.batch.loader import Normalize, ViewDataset
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.nn.regions import compile_blocks_, compiling

# of a block each, student at two sizes of crops, student, and every teacher: graphs, and runs of a step
CASES = {
    "mocov3": (8, {"Block.forward": 1 + 1, "Mlp.forward": 2 + 1, "info_nce": 2}),
    "dino": (13, {"Block.forward": 1 + 1 + 1, "DistillHead.embed": 1 + 1, "cross_view": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_method_is_compiled_by_regions(name: str) -> None:
    graphs, runs = CASES[name]
    found = check_compiled(name, "method.encoder.depth=1", steps=2)
    assert len(found.made) == graphs, Counter(found.made)
    assert {region: found.runs[region] for region in runs} == {region: 2 * count for region, count in runs.items()}


class Network(nn.Module):
    """A model of one network."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = EncoderConfig(
            model="vit_tiny_patch16_224", patch_size=4, width=16, depth=5, heads=2, drop_path=drop_path
        )
        self.encoder = config.build((16, 16))


def test_blocks_share_a_graph_whatever_their_rate_of_drop_path() -> None:
    model, images = Network(0.5).train(), torch.randn(64, 3, 16, 16)
    plain = [block.drop_path1 for block in model.encoder.vit.blocks]
    compile_blocks_(model)
    with counted() as graphs, compiling(True):
        dropped = model.encoder(images).patches
    assert graphs.made == ["Block.forward"] * 2, "the first block drops none"
    assert (dropped != model.eval().encoder(images).patches).any()

    # the share that is kept, and its scale
    x = torch.ones(20_000, 2, 3)
    for part in plain[1:]:
        kept = part.train()(x)
        values = kept.unique()
        torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - part.drop_prob)]))
        assert (kept[:, :1, :1] == kept).all() and abs(kept.mean() - 1) < 0.03
        assert part.eval()(x) is x


def test_a_copy_of_a_compiled_network_has_its_own_weights() -> None:
    model, images = Network(0.0), torch.randn(2, 3, 16, 16)
    compile_blocks_(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        with counted(), compiling(True):
            assert model.encoder(images).patches.any() and not twin.encoder(images).patches.any()


def test_colours_are_compiled_by_view_and_the_same() -> None:
    """On a device; how many crops are blurred differs from batch to batch."""
    recipe, cpu = recipe_of("dino"), torch.device("cpu")
    dataset = ViewDataset(
        Opened(recipe.data).train, recipe.method.views, recipe.method.mask_patch, recipe.seed, recipe.method.mixing
    )
    normalize = Normalize(recipe.data.mean, recipe.data.std, cpu)
    made = []
    with counted() as graphs:
        for positions in EpochSampler(42, 8, 2, seed=0):
            for crops in collate([dataset[p] for p in positions]).crops:
                assert crops.colours is not None
                colours = crops.colours.map(lambda tensor: tensor.transpose(0, 1))
                given = crops.pixels.transpose(0, 1), colours, crops.blurred, normalize
                with compiling(True):
                    found = loader.recoloured_at_once(*given)
                torch.testing.assert_close(found, loader.recoloured_at_once(*given), rtol=1e-6, atol=1e-6)
            made.append(len(graphs.made))
    assert made == [5] * 2 and not graphs.breaks and not graphs.symbols
