"""SimMIM's ViT against numbers of the official code (microsoft/SimMIM). Long tensors may be there in part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from begun import load_method
from parity.golden import Golden, assert_begins, assert_close, read_json
from parity.simmim import batch_of, head_as_ours, mask_of, ours, unit_of
from parity.vit import (
    BACKWARD,
    FORWARD,
    START,
    assert_gradients,
    depth_of,
    encoder_config,
    heads_in,
    names_by_decay,
    shapes_under,
    use_eps,
)

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.weights import import_official
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import unpatchify
from unlabeled.pretrain.methods.simmim import Config, SimMIM

TABLE = "relative_position_bias_table"


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "vit.safetensors")


@pytest.fixture(scope="module")
def export(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights, through the importer, as an export folder."""
    home = tmp_path_factory.mktemp("simmim")
    weights = dict(golden.under("sd"))
    torch.save({"model": weights}, home / "official.pth")
    tables = any(TABLE in name for name in weights)  # which show how many heads there are
    heads = None if tables else heads_in(golden.config, len(weights["encoder.patch_embed.proj.weight"]))
    import_official("simmim", home / "official.pth", home / "export", heads=heads)
    return home / "export"


def build(golden: Golden, export: Path) -> SimMIM:
    model = config_of(golden).build()
    load_method(model, export)
    use_eps(model, golden.config)
    return model.train()


def positions(names: Iterable[str]) -> dict[str, str]:
    """Which positions names of an official encoder speak of, as our settings."""
    names = list(names)
    shared, own = (any(f"{part}.{TABLE}" in name for name in names) for part in ("rel_pos_bias", "attn"))
    tables = {"relative_tables": "both" if shared and own else "blocks" if own else "shared"}
    if "pos_embed" not in names:
        return {"positions": "relative", **tables}
    return {"positions": "relative_learned", **tables} if shared or own else {"positions": "learned"}


def config_of(golden: Golden) -> Config:
    shapes, settings = shapes_under(golden, "sd/encoder."), golden.config
    scaled = "blocks.0.gamma_1" in shapes
    encoder = encoder_config(
        shapes,
        settings,
        "beit_base_patch16_224",
        init_values=settings.get("init_values", 0.1) if scaled else 0.0,
        **positions(shapes),
    )
    mask = settings.get("mask", {})
    return Config(
        view=View(
            size=golden.shape("in/imgs")[-2:],
            mask=RandomMask(ratio=mask.get("mask_ratio", 0.6), unit=unit_of(golden) * encoder.patch_size),
        ),
        encoder=encoder,
    )


def test_the_mask_hides_as_many_patches_as_ours(golden: Golden) -> None:
    mask, hidden, per_unit = config_of(golden).view.mask, golden["in/mask"].flatten(1), unit_of(golden) ** 2
    assert isinstance(mask, RandomMask)
    assert hidden.sum(1).unique().tolist() == [mask.hidden(hidden.shape[1] // per_unit) * per_unit]


def test_relative_bias(golden: Golden, export: Path) -> None:
    bias = build(golden, export).encoder.shared_bias()
    if bias is not None:
        assert_begins(bias, golden["out/rel_pos_bias"], 0.0, "rel_pos_bias")


def test_the_index_of_relative_positions(golden: Golden, export: Path) -> None:
    """Officially a buffer that is saved; a set may leave it out."""
    state = build(golden, export).state_dict() | dict(build(golden, export).named_buffers())
    for name in [key for key in golden.names() if key.endswith(".relative_position_index")]:
        assert torch.equal(state[ours(name.removeprefix("sd/"))], golden[name]), name


def test_features(golden: Golden, export: Path) -> None:
    with torch.no_grad():
        tokens = build(golden, export).encode(golden["in/imgs"], mask_of(golden))
    features = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)
    assert_begins(features, golden["out/encoder_z"], FORWARD, "encoder_z")


def test_reconstruction(golden: Golden, export: Path) -> None:
    model, mask = build(golden, export), mask_of(golden)
    everything = torch.arange(mask.hidden.shape[1]).expand(len(mask.hidden), -1)
    with torch.no_grad():
        tokens = model.encode(golden["in/imgs"], mask)
        pixels = model.decoder(tokens, mask, index=everything)
    rebuilt = unpatchify(pixels, model.encoder.patch_size, tokens.grid)
    assert_begins(rebuilt, golden["out/x_rec"], FORWARD, "x_rec")


def test_loss(golden: Golden, export: Path) -> None:
    output = build(golden, export)(batch_of(golden), START)
    assert_close(output.loss, golden["out/loss"], FORWARD, "loss")


def test_gradients(golden: Golden, export: Path) -> None:
    model = build(golden, export)
    model(batch_of(golden), START).loss.backward()

    assert_gradients(model, golden.some("grad"), ours, as_ours=head_as_ours(golden))
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert_close(torch.stack(norms).norm(), golden["out/grad_norm_total"], BACKWARD, "norm of all gradients")


def test_parameter_groups(folder: Path) -> None:
    """Which parameters decay follows from their names and number of axes: any width will do."""
    for network, official in read_json(folder / "param_groups_pretrain.json").items():
        names = [name.removeprefix("encoder.") for name in (*official["decay"], *official["no_decay"])]
        if any(name.startswith("layers.") for name in names):
            continue  # see test_simmim_swin.py
        encoder = EncoderConfig(
            model="beit_base_patch16_224",
            patch_size=4,
            width=8,
            depth=depth_of(names),
            heads=2,
            qkv_bias="blocks.0.attn.q_bias" in names,
            init_values=0.1 if "blocks.0.gamma_1" in names else 0.0,
            **positions(names),  # type: ignore[arg-type]
        )
        decayed = names_by_decay(Config(view=View(size=16, mask=RandomMask(unit=8)), encoder=encoder).build())
        assert decayed[True] == {ours(name) for name in official["decay"]}, network
        assert decayed[False] == {ours(name) for name in official["no_decay"]}, network


def test_learned_positions_of_a_plain_vit_do_not_decay() -> None:
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, width=24, depth=1, heads=2, positions="learned")
    model = Config(view=View(size=32, mask=RandomMask(unit=16)), encoder=encoder).build()
    kept = {name for name, p in model.named_parameters() if p.ndim > 1 and not model.decays(name, p)}
    assert kept == {"encoder.vit.pos_embed", "encoder.vit.cls_token"}


def test_defaults_hide_the_papers_share() -> None:
    mask = Config().view.mask
    assert isinstance(mask, RandomMask) and mask.unit == 32
    assert (mask.hidden(49), mask.hidden(36)) == (30, 22)


def test_initial_weights_are_cut_and_shrink_with_depth(golden: Golden) -> None:
    torch.manual_seed(0)
    config = config_of(golden)
    model = config.build()
    vit = model.encoder.vit
    for number, block in enumerate(vit.blocks, start=1):
        for weight, bound in (
            (block.attn.qkv.weight, 0.02),
            (block.mlp.fc1.weight, 0.02),
            (block.attn.proj.weight, 0.02 / math.sqrt(2 * number)),
            (block.mlp.fc2.weight, 0.02 / math.sqrt(2 * number)),
        ):
            assert 0.99 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(0.54 * bound, rel=max(0.03, 4 / math.sqrt(weight.numel())))
        if config.encoder.init_values:
            assert torch.equal(block.gamma_1, torch.full_like(block.gamma_1, config.encoder.init_values))
    for tensor in (vit.patch_embed.proj.weight, vit.cls_token, model.mask_token):
        assert 0.008 < tensor.abs().max() <= 0.02
    assert vit.rel_pos_bias is None or not vit.rel_pos_bias.relative_position_bias_table.any()
    assert not vit.patch_embed.proj.bias.any()
    limit = 1 / math.sqrt(vit.embed_dim)
    assert 0.9 * limit < model.decoder.head.weight.abs().max() <= limit
