"""SimMIM's ViT against numbers of the official code (microsoft/SimMIM). Long tensors may be there in part."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close, read_json
from torch import Tensor

from unlabeled.data.masks import RandomMask
from unlabeled.data.views import View
from unlabeled.export import load_method
from unlabeled.importers import import_official
from unlabeled.importers.simmim import RULES
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.simmim import Config, SimMIM
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.patches import PatchMask, unpatchify
from unlabeled.train.optim import param_groups

FORWARD, BACKWARD = 1e-5, 2e-5
START = Progress(0, 1, 0.0, 1.0)


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "vit.safetensors")


@pytest.fixture(scope="module")
def export(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights, through the importer, as an export folder."""
    home = tmp_path_factory.mktemp("simmim")
    torch.save({"model": golden.under("sd")}, home / "official.pth")
    import_official("simmim", home / "official.pth", home / "export")
    return home / "export"


def build(golden: Golden, export: Path) -> SimMIM:
    model = config_of(golden).build()
    load_method(model, export)
    return model.train()


def config_of(golden: Golden) -> Config:
    config = golden.config
    assert (config["mlp_ratio"], config["ln_eps"], config["init_values"]) == (4, 1e-6, 0.1), "SimMIM's constants"
    assert config["use_shared_rel_pos_bias"] and not config["use_abs_pos_emb"] and not config["use_rel_pos_bias"]
    mask = config["mask"]
    return Config(
        view=View(size=config["img_size"], mask=RandomMask(ratio=mask["mask_ratio"], unit=mask["mask_patch_size"])),
        encoder=EncoderConfig(
            model="beit_base_patch16_224",
            patch_size=config["patch_size"],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            channels=config["in_chans"],
            positions="relative",
        ),
    )


def mask_of(golden: Golden) -> PatchMask:
    hidden = golden["in/mask"].flatten(1).bool()
    order = hidden.int().argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    return PatchMask(hidden, order[:, :visible], order[:, visible:])


def batch_of(golden: Golden) -> Batch:
    images, mask = golden["in/imgs"], mask_of(golden).map(lambda t: t.unsqueeze(0))
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def assert_close_as_far(ours: Tensor, official: Tensor, tolerance: float, what: str) -> None:
    assert_close(ours[: len(official)], official, tolerance, what)


def ours(name: str) -> str:
    """Our name of an official parameter."""
    rule = next(rule for rule in RULES if name.startswith(rule.official))
    renamed = rule.ours + name.removeprefix(rule.official)
    return f"encoder.vit.{renamed}" if rule.to == "encoder" else renamed


def test_relative_bias(golden: Golden, export: Path) -> None:
    bias = build(golden, export).encoder.vit.rel_pos_bias()
    assert torch.equal(bias[: len(golden["out/rel_pos_bias"])], golden["out/rel_pos_bias"])


def test_features(golden: Golden, export: Path) -> None:
    with torch.no_grad():
        tokens = build(golden, export).encode(golden["in/imgs"], mask_of(golden))
    features = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)
    assert_close_as_far(features, golden["out/encoder_z"], FORWARD, "encoder_z")


def test_reconstruction(golden: Golden, export: Path) -> None:
    model, mask = build(golden, export), mask_of(golden)
    everything = torch.arange(mask.hidden.shape[1]).expand(len(mask.hidden), -1)
    with torch.no_grad():
        tokens = model.encode(golden["in/imgs"], mask)
        pixels = model.decoder(tokens, mask, index=everything)
    rebuilt = unpatchify(pixels, model.encoder.patch_size, tokens.grid)
    assert_close_as_far(rebuilt, golden["out/x_rec"], FORWARD, "x_rec")


def test_loss(golden: Golden, export: Path) -> None:
    output = build(golden, export)(batch_of(golden), START)
    assert_close(output.loss, golden["out/loss"], FORWARD, "loss")


def test_gradients(golden: Golden, export: Path) -> None:
    official = golden.under("grad")
    model = build(golden, export)
    model(batch_of(golden), START).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {ours(name) for name in official} <= gradients.keys()
    for name, gradient in official.items():
        mine = gradients[ours(name)]
        assert mine is not None
        if name.startswith("decoder"):
            mine = shuffled(mine, golden.config["in_chans"])
        assert_close(mine, gradient.reshape(mine.shape), BACKWARD, name)
    norm = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    assert_close(norm, golden["out/grad_norm_total"], BACKWARD, "norm of all gradients")


def shuffled(head: Tensor, channels: int) -> Tensor:
    """Rows of a head from our order (row, column, channel) to pixel shuffle's, one by one."""
    pixels = len(head) // channels
    return torch.stack([head[pixel * channels + c] for c in range(channels) for pixel in range(pixels)])


def test_parameter_groups(golden: Golden, export: Path, folder: Path) -> None:
    official = read_json(folder / "param_groups_pretrain.json")["vit_tiny"]
    model = build(golden, export)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {g["weight_decay"] > 0: {names[id(p)] for p in g["params"]} for g in param_groups(model, 0.05)}
    assert decayed[True] == {ours(name) for name in official["decay"]}
    assert decayed[False] == {ours(name) for name in official["no_decay"]}


def test_learned_positions_of_a_plain_vit_do_not_decay(folder: Path) -> None:
    official = read_json(folder / "param_groups_pretrain.json")["vit_tiny_with_ape"]
    assert "encoder.pos_embed" in official["no_decay"]
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, width=24, depth=1, heads=2, positions="learned")
    model = Config(view=View(size=32, mask=RandomMask(unit=16)), encoder=encoder).build()
    kept = {name for name, p in model.named_parameters() if p.ndim > 1 and not model.decays(name, p)}
    assert kept == {"encoder.vit.pos_embed", "encoder.vit.cls_token"}


def test_number_of_hidden_units_is_rounded_up(folder: Path) -> None:
    for ratio, count in Golden(folder / "masks.safetensors")["out/mask_count_table"].tolist():
        assert RandomMask(ratio=ratio, rounding="ceil_hidden").hidden(36) == count, ratio


def test_defaults_hide_the_papers_share() -> None:
    mask = Config().view.mask
    assert isinstance(mask, RandomMask) and mask.unit == 32
    assert (mask.hidden(49), mask.hidden(36)) == (30, 22)


def test_initial_weights_are_cut_and_shrink_with_depth(golden: Golden) -> None:
    torch.manual_seed(0)
    model = config_of(golden).build()
    vit = model.encoder.vit
    for number, block in enumerate(vit.blocks, start=1):
        for weight, bound in (
            (block.attn.qkv.weight, 0.02),
            (block.mlp.fc1.weight, 0.02),
            (block.attn.proj.weight, 0.02 / math.sqrt(2 * number)),
            (block.mlp.fc2.weight, 0.02 / math.sqrt(2 * number)),
        ):
            assert 0.99 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(0.54 * bound, rel=0.03)
        assert torch.equal(block.gamma_1, torch.full_like(block.gamma_1, 0.1))
    for tensor in (vit.patch_embed.proj.weight, vit.cls_token, model.mask_token):
        assert 0.008 < tensor.abs().max() <= 0.02
    assert not vit.rel_pos_bias.relative_position_bias_table.any() and not vit.patch_embed.proj.bias.any()
    limit = 1 / math.sqrt(vit.embed_dim)
    assert 0.95 * limit < model.decoder.head.weight.abs().max() <= limit
