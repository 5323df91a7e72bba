"""Features on the bench: every pool of every block by hand, from one pass over the pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from evaluate.test_protocol import FakeData
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Pool, encoder_features
from unlabeled.data.label.subset import stratified
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation
from unlabeled.evaluate.splits import Splits

DEPTH = 3


class Counted(FakeData):
    """Counts how often pictures are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        for source in self.splits.values():
            source.image = self.counted(source.image)  # type: ignore[method-assign]

    def counted(self, image: Any) -> Any:
        def read(i: int) -> Tensor:
            self.reads += 1
            return image(i)

        return read


def make(**config: Any) -> Encoder:
    torch.manual_seed(0)
    sizes = {} if "model" in config else {"patch_size": 4, "width": 16, "depth": DEPTH, "heads": 2}
    encoder = EncoderConfig(**{"model": "vit_tiny_patch16_224", **sizes, **config}).build((8, 8))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.train()


def bench(encoder: Encoder, data: FakeData) -> Bench:
    return Bench(encoder, Splits(Evaluation(crop_pct=1.0, batch_size=32), data, torch.device("cpu")), (8, 8))


@torch.no_grad()
def by_hand(encoder: Encoder, pictures: Tensor, pool: Pool, blocks: int) -> Tensor:
    """timm's own intermediate tokens, put together as the papers do."""
    images = (pictures.float() / 255 - 0.5) / 0.25
    vit = encoder.eval().vit
    found = vit.forward_intermediates(
        images, blocks, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    patches, prefix = zip(*found, strict=True)
    cls = [tokens[:, 0] for tokens in prefix]
    mean = [tokens.sum(1) / tokens.shape[1] for tokens in patches]
    highest = [tokens.max(1).values for tokens in patches]
    together = {
        "cls": cls,
        "mean": mean,
        "cls_mean": [*cls, mean[-1]],
        "mean_max": [half for pair in zip(mean, highest, strict=True) for half in pair],
    }
    return torch.cat(together[pool], dim=1)


def test_all_kinds_of_features_from_one_pass() -> None:
    data, encoder = Counted(), make()
    kinds = [FeatureSpec(pool, blocks) for pool in ("cls", "mean", "cls_mean", "mean_max") for blocks in (1, 2, DEPTH)]
    on_bench = bench(encoder, data)
    on_bench.prepare(kinds)
    assert data.reads == 120 and encoder.training
    for pool, blocks in kinds:
        for split, found in zip(("train", "val"), on_bench.features(pool, blocks), strict=True):
            expected = by_hand(encoder, data.splits[split].pictures, pool, blocks)
            torch.testing.assert_close(found.x, expected, rtol=1e-4, atol=1e-5)
            assert found.y.tolist() == data.splits[split].labels.tolist()
    assert data.reads == 120


def test_few_labels_share_the_features_of_all() -> None:
    data = Counted()
    whole = bench(make(), data)
    few = whole.few(0.2, seed=3)
    train, test = few.features("mean")
    rows = stratified(data.splits["train"].labels, 0.2, 3)
    assert torch.equal(train.x, whole.features("mean")[0].x[torch.from_numpy(rows)])
    assert (len(train.y), len(test.y), few.seed, whole.fraction) == (18, 30, 3, 1.0)
    assert np.bincount(train.y).tolist() == [6, 6, 6]
    assert data.reads == 120


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "beit_base_patch16_224"])
@torch.no_grad()
def test_the_last_block_is_the_forward_pass(model: str) -> None:
    relative = {"positions": "relative"} if model.startswith("beit") else {}
    encoder = make(model=model, patch_size=4, width=16, depth=DEPTH, heads=2, **relative).eval()
    images = torch.randn(2, 3, 8, 8)
    first, last = encoder.intermediate(images, [0, -1])
    assert all(torch.equal(a, b) for a, b in zip(last[:2], encoder(images)[:2], strict=True))
    encoder.vit.blocks = encoder.vit.blocks[:1]
    assert all(torch.equal(a, b) for a, b in zip(first[:2], encoder(images)[:2], strict=True))


def test_blocks_that_are_not_there() -> None:
    encoder, images = make(), torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="blocks 0 to 2, found 3"):
        encoder.intermediate(images, [3])
    with pytest.raises(UserError, match="3 blocks, found blocks=4"):
        bench(encoder, FakeData()).features("cls", 4)
    cnn = make(model="resnet18")
    assert torch.equal(cnn.eval().intermediate(images, [-1])[0].patches, cnn(images).patches)
    with pytest.raises(ValueError, match="last stage's map only"):
        cnn.intermediate(images, [-2, -1])
    with pytest.raises(UserError, match="last map alone"):
        bench(cnn, FakeData()).features("mean", 2)
    with pytest.raises(UserError, match="pool=mean"):
        bench(cnn, FakeData()).features("cls_mean")


def test_a_cnn_in_training_is_read_as_in_evaluation_and_keeps_its_statistics() -> None:
    cnn, images = make(model="test_resnet").train(), torch.randn(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    found = encoder_features(cnn, "mean")(images)
    assert cnn.training and all(torch.equal(tensor, before[name]) for name, tensor in cnn.state_dict().items())
    torch.testing.assert_close(found, cnn.eval()(images).patches.mean(1))
