"""Decoders: any patches at any grid, against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from every_method import batch_of, build, on_a_gpu
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.decoder import Decoder
from unlabeled.pretrain.decoders import cross, cross_light, self
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import mae
from unlabeled.pretrain.methods.simmim import LinearDecoder

Grid = tuple[int, int]
NATIVE, OUT, WIDTH, HEADS = (3, 5), 7, 16, 2
VIEW, RNG = {"size": 32, "mask": {"name": "random"}}, np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, width=24, depth=1, heads=2)
    return config.build((NATIVE[0] * 8, NATIVE[1] * 8))


def randomised(decoder: Any) -> Any:
    """Nothing at zero or one, so that a part left out shows."""
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


@pytest.fixture
def self_decoder(encoder: Encoder) -> self.SelfDecoder:
    return randomised(self.Config(width=WIDTH, depth=2, heads=HEADS).build(encoder, OUT))


@pytest.fixture
def light_decoder(encoder: Encoder) -> cross_light.LightDecoder:
    return randomised(cross_light.Config(width=WIDTH, depth=2, heads=HEADS, share=1.0).build(encoder, OUT))


@pytest.fixture
def cross_decoder(encoder: Encoder) -> cross.CrossDecoder:
    config = cross.Config(width=WIDTH, depth=3, heads=HEADS, predicted=0.4)
    return randomised(config.build(encoder, OUT, hidden=0.6))


@pytest.mark.parametrize("config", [self.Config, cross.Config, cross_light.Config])
def test_the_mlps_width(encoder: Encoder, config: Any) -> None:
    decoder = config(width=WIDTH, depth=1, heads=HEADS, mlp_ratio=2.5).build(encoder, OUT)
    assert decoder.blocks[0].mlp.fc1.weight.shape == (40, WIDTH)


@pytest.fixture(params=["self", "cross", "light", "linear"])
def decoder(request: pytest.FixtureRequest, encoder: Encoder) -> Decoder:
    if request.param == "linear":
        return randomised(LinearDecoder(encoder))
    return request.getfixturevalue(f"{request.param}_decoder")


def masked(grid: Grid, batch: int = 2) -> PatchMask:
    rng = np.random.default_rng(0)
    drawn = [RandomMask(ratio=0.6).draw(rng, grid, 8) for _ in range(batch)]
    return PatchMask.stack(drawn)


def encoded(mask: PatchMask, grid: Grid, full: bool = False) -> Tokens:
    """Tokens as an encoder would give them: of the visible patches, or of all."""
    rng = torch.Generator().manual_seed(1)
    batch, n = mask.hidden.shape[0], mask.hidden.shape[1] if full else mask.indices()[0].shape[1]
    prefix, patches = (torch.randn(batch, m, 24, generator=rng) for m in (1, n))
    layers = tuple(torch.randn(batch, 1 + n, 24, generator=rng) for _ in range(2))  # before and after the one block
    return Tokens(prefix, patches, grid, layers=layers)


def stretched(table: Tensor, grid: Grid) -> Tensor:
    """A table [N, D] of the native grid at another one, row-major."""
    image = table.T.reshape(1, -1, *NATIVE)
    return F.interpolate(image, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T


@pytest.mark.parametrize("grid", [NATIVE, (4, 2), (6, 6)])
@torch.no_grad()
def test_a_subset_is_predicted_as_part_of_the_whole(decoder: Decoder, grid: Grid) -> None:
    mask = masked(grid)
    tokens = encoded(mask, grid, full=isinstance(decoder, LinearDecoder))
    n = grid[0] * grid[1]
    everything = decoder(tokens, mask, index=torch.arange(n).expand(2, -1))
    # the linear one predicts all pixels of a patch
    assert everything.shape == (2, n, decoder.head.out_features if isinstance(decoder, LinearDecoder) else OUT)
    some = torch.stack([torch.randperm(n)[:3] for _ in range(2)])
    for index in (some, decoder.predicts(mask)):
        found = decoder(tokens, mask, index=index)
        expected = torch.stack([row[chosen] for row, chosen in zip(everything, index, strict=True)])
        torch.testing.assert_close(found, expected)
    assert torch.equal(decoder(tokens, mask), decoder(tokens, mask, index=decoder.predicts(mask)))


@torch.no_grad()
def test_linear_is_one_layer_at_the_hidden_patches(encoder: Encoder) -> None:
    decoder, mask = randomised(LinearDecoder(encoder)), masked(NATIVE)
    tokens = encoded(mask, NATIVE, full=True)
    found = decoder(tokens, mask)
    for row, drop in enumerate(mask.indices()[1]):
        for slot, patch in enumerate(drop):
            expected = decoder.head.weight @ tokens.patches[row, patch] + decoder.head.bias
            torch.testing.assert_close(found[row, slot], expected)


@pytest.mark.parametrize("grid", [NATIVE, (4, 2)])
@torch.no_grad()
def test_self_fills_the_gaps_one_by_one(self_decoder: self.SelfDecoder, grid: Grid) -> None:
    decoder, mask = self_decoder, masked(grid)
    tokens = encoded(mask, grid)
    table = decoder.positions[0, 1:] if grid == NATIVE else stretched(decoder.positions[0, 1:], grid)
    for row in range(2):
        sequence = [decoder.embed(tokens.prefix[row, 0]) + decoder.positions[0, 0]]
        keep = mask.indices()[0][row].tolist()
        for patch in range(grid[0] * grid[1]):
            visible = patch in keep
            content = decoder.embed(tokens.patches[row, keep.index(patch)]) if visible else decoder.mask_token[0, 0]
            sequence.append(content + table[patch])
        x = torch.stack(sequence).unsqueeze(0)
        for block in decoder.blocks:
            x = block(x)
        expected = decoder.head(decoder.norm(x))[0, 1:]
        torch.testing.assert_close(decoder(tokens, mask)[row], expected[mask.indices()[1][row]])


def attended(block: Any, x: Tensor, memory: Tensor) -> Tensor:
    """One query [D] over memory [K, D], head by head."""
    query = block.query(block.norm1(x))
    keys, values = block.key_value(memory).split(WIDTH, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(WIDTH / HEADS)
        weights = scores.exp() / scores.exp().sum()
        heads.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
    return block.proj(torch.cat(heads))


@pytest.mark.parametrize("grid", [NATIVE, (4, 2)])
@torch.no_grad()
def test_light_reads_the_visible_tokens_query_by_query(light_decoder: cross_light.LightDecoder, grid: Grid) -> None:
    decoder: Any = light_decoder
    mask = masked(grid)
    tokens = encoded(mask, grid)
    found = decoder(tokens, mask)
    table = decoder.positions[0] if grid == NATIVE else stretched(decoder.positions[0], grid)
    for row, drop in enumerate(mask.indices()[1]):
        memory = decoder.memory_norm(decoder.embed(torch.cat([tokens.prefix[row], tokens.patches[row]])))
        for slot, patch in enumerate(drop):
            x = decoder.mask_token[0, 0] + table[patch]
            for block in decoder.blocks:
                x = x + attended(block, x, memory)
                x = x + block.mlp(block.norm2(x))
            torch.testing.assert_close(found[row, slot], decoder.head(decoder.norm(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [NATIVE, (4, 2)])
@torch.no_grad()
def test_cross_weights_the_blocks_for_each_of_its_own(cross_decoder: cross.CrossDecoder, grid: Grid) -> None:
    decoder: Any = cross_decoder
    mask = masked(grid)
    tokens = encoded(mask, grid)
    found = decoder(tokens, mask)
    table = decoder.positions[0] if grid == NATIVE else stretched(decoder.positions[0], grid)
    for row, drop in enumerate(mask.indices()[1]):
        skipped = int(grid[0] * grid[1] * (0.6 - 0.4))
        for slot, patch in enumerate(sorted(drop.tolist()[skipped:])):
            x = decoder.mask_token[0, 0] + table[patch]
            for number, block in enumerate(decoder.blocks):
                weights = decoder.maps.weight[number]
                memory = sum(weight * layer[row] for weight, layer in zip(weights, tokens.layers, strict=True))
                x = x + attended(block, x, block.memory_norm(memory))
                x = x + block.mlp(block.norm2(x))
            torch.testing.assert_close(found[row, slot], decoder.head(decoder.norm(x)), rtol=1e-4, atol=1e-5)
        assert slot + 1 == found.shape[1]


def test_cross_trains_all_that_it_reads_and_the_encoder_gives_the_same_tokens() -> None:
    fields = {"model": "vit_tiny_patch16_224", "patch_size": 8, "width": 24, "depth": 3, "heads": 2}
    decoder = {"name": "cross", "width": 16, "depth": 2, "heads": 2, "maps": [0, 2], "use_input": False}
    method: Any = mae.Config.model_validate({"view": VIEW, "encoder": fields, "decoder": decoder}).build()
    images, mask = torch.randn(2, 3, 32, 32), PatchMask.stack([RandomMask().draw(RNG, (4, 4), 8) for _ in range(2)])
    tokens, plain = method.decoder.encode(method.encoder, images, mask), method.encoder(images, drop=mask)
    assert torch.equal(tokens.patches, plain.patches) and len(tokens.layers) == 4 and method.decoder.read == [1, 3]
    batch = Batch([ViewBatch(images[None], mask.map(lambda t: t[None]))], torch.zeros(2), torch.zeros(2))
    method(batch, Progress(0, 1, 0.0, 1.0)).loss.backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert method.pictures(batch).shape == (2, 3, 3, 32, 32)


@pytest.mark.parametrize("name", ["cross", "cross_light"])
def test_a_step_on_a_gpu_with_each(name: str) -> None:
    decoder = f"method.decoder={{name: {name}, width: 32, depth: 2, heads: 2}}"
    output = on_a_gpu(build("mae", decoder), batch_of("mae", decoder))
    assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("decoder", "encoder", "says"),
    [
        ({"predicted": 0.8}, {}, r"predicted: found 0.8 of all patches, but the mask hides 0.75"),
        ({"maps": [0, 12]}, {}, r"decoder.maps: found block 12, but the encoder has blocks 0 to 11"),
        ({}, {"model": "hiera_tiny_224"}, "does not give. Use decoder cross_light"),
        ({"heads": 3}, {}, "3 heads do not divide a width of 512"),
    ],
)
def test_what_cross_cannot_do_is_said(decoder: dict[str, Any], encoder: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says), torch.device("meta"):
        mae.Config.model_validate({"encoder": encoder, "decoder": {"name": "cross", **decoder}}).build()


@pytest.mark.parametrize(("share", "predicted"), [(0.25, 3), (0.01, 1), (0.5, 5), (1.0, 9)])
@torch.no_grad()
def test_predicting_a_share_changes_no_prediction(
    light_decoder: cross_light.LightDecoder, share: float, predicted: int
) -> None:
    mask = masked(NATIVE)
    tokens = encoded(mask, NATIVE)
    whole, drop = light_decoder(tokens, mask), mask.indices()[1]
    light_decoder.share = share
    assert torch.equal(light_decoder.predicts(mask), drop[:, :predicted])
    torch.testing.assert_close(light_decoder(tokens, mask), whole[:, :predicted])


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (self.Config, {"width": 30}),
        (cross.Config, {"predicted": 1.1}),
        (cross_light.Config, {"share": 0.0}),
        (cross_light.Config, {"share": 1.1}),
    ],
)
def test_impossible_decoders_are_refused(config: Any, error: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(error))):
        config(**error)
