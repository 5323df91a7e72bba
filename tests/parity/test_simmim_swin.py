"""SimMIM's Swin against numbers of the official code (microsoft/SimMIM). All sizes come from weights and settings."""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt
from pathlib import Path

import pytest
import torch
from begun import load_method
from parity.golden import Golden, Settings, assert_begins, assert_close, read_json
from parity.simmim import batch_of, head_as_ours, mask_of, ours, unit_of
from parity.vit import (
    BACKWARD,
    FORWARD,
    START,
    assert_gradients,
    depth_of,
    mlp_ratio,
    names_by_decay,
    shapes_under,
    use_eps,
)

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.importing import read
from unlabeled.backbone.weights import import_official, load_encoder
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import unpatchify
from unlabeled.pretrain.methods.simmim import Config, SimMIM

TABLE = "relative_position_bias_table"
MODEL = "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "swin.safetensors")


@pytest.fixture(scope="module")
def export(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights, through the importer, as an export folder."""
    home = tmp_path_factory.mktemp("simmim")
    torch.save({"model": dict(golden.under("sd"))}, home / "official.pth")
    import_official("simmim", home / "official.pth", home / "export")
    return home / "export"


def depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """The number of blocks of each stage that names speak of."""
    names = list(names)
    return tuple(depth_of(names, f"layers.{stage}.blocks.") for stage in range(depth_of(names, "layers.")))


def config_of(golden: Golden) -> Config:
    shapes, settings = shapes_under(golden, "sd/encoder."), golden.config
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depths = depths_of(shapes)
    tables = [shapes[f"layers.{stage}.blocks.0.attn.{TABLE}"] for stage in range(len(depths))]
    encoder = EncoderConfig(
        model=MODEL,
        patch_size=patch << (len(depths) - 1),
        width=width,
        depth=depths,
        heads=tuple(heads for _, heads in tables),
        window=(isqrt(max(offsets for offsets, _ in tables)) + 1) // 2,
        mlp_ratio=mlp_ratio(shapes["layers.0.blocks.0.mlp.fc1.weight"][0], width),
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
        channels=channels,
    )
    mask, size = settings.get("mask", {}), golden.shape("in/imgs")[-2:]
    unit = unit_of(golden) * size[0] // golden.shape("in/mask")[1]
    return Config(view=View(size=size, mask=RandomMask(ratio=mask.get("mask_ratio", 0.6), unit=unit)), encoder=encoder)


def build(golden: Golden, export: Path) -> SimMIM:
    model = config_of(golden).build()
    load_method(model, export)
    use_eps(model, Settings(ln_eps=golden.config.get("ln_eps", 1e-5)))
    return model.train()


def test_settings_are_those_of_the_weights(golden: Golden) -> None:
    encoder, settings = config_of(golden).encoder, golden.config
    assert list(encoder.depth) == list(settings.get("depths", encoder.depth))  # type: ignore[arg-type]
    assert list(encoder.heads) == list(settings.get("num_heads", encoder.heads))  # type: ignore[arg-type]
    most = golden.shape("in/imgs")[2] // encoder.embedding_patch  # a window is no larger than the map
    assert encoder.window == min(most, settings.get("window_size", encoder.window))
    assert encoder.patch_size == settings.get("encoder_stride", encoder.patch_size)


def test_the_fields_that_go_on_build_the_same_network(golden: Golden, export: Path) -> None:
    encoder, said = config_of(golden).encoder, read("simmim", export.parent / "official.pth").method
    shown = EncoderConfig.model_validate(said["encoder"])
    same = {"model": encoder.model, "mlp_ratio": shown.mlp_ratio or 4.0}  # None = the timm model's
    assert (said["name"], shown.model_copy(update=same)) == ("simmim", encoder)
    assert EncoderConfig.model_validate(load_encoder(export).fields()) == shown


def test_the_mask_hides_as_many_patches_as_ours(golden: Golden) -> None:
    """Over patches as fine as the set's units need."""
    config, hidden = config_of(golden), golden["in/mask"].flatten(1)
    mask, size = config.view.mask, golden.shape("in/imgs")[-2:]
    assert isinstance(mask, RandomMask) and mask.unit
    assert mask.unit % config.mask_patch == config.mask_patch % config.encoder.embedding_patch == 0
    ours = mask.hidden(size[0] // mask.unit * (size[1] // mask.unit)) * mask.unit**2
    assert {count * size[0] * size[1] // hidden.shape[1] for count in hidden.sum(1).tolist()} == {ours}


def test_buffers_that_are_officially_saved(golden: Golden, export: Path) -> None:
    """The index of relative positions, and which positions of a shifted window see each other."""
    state = dict(build(golden, export).named_buffers())
    for name in [key for key in golden.names() if key.endswith((".relative_position_index", ".attn_mask"))]:
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
        pixels = model.decoder(model.encode(golden["in/imgs"], mask), mask, index=everything)
    _, rows, columns = golden.shape("in/mask")
    rebuilt = unpatchify(pixels, mask.side(golden["in/imgs"]), (rows, columns))
    assert_begins(rebuilt, golden["out/x_rec"], FORWARD, "x_rec")


def test_loss(golden: Golden, export: Path) -> None:
    output = build(golden, export)(batch_of(golden), START)
    assert_close(output.loss, golden["out/loss"], FORWARD, "loss")


def test_the_same_mask_over_larger_patches_gives_the_same_loss(golden: Golden, export: Path) -> None:
    """As recipes draw it: no finer than its units, over the positions of the encoder's output where they are."""
    patch, batch = config_of(golden).mask_patch, batch_of(golden)
    view, _, rows, columns = batch.views[0], *golden.shape("in/mask")
    factor = patch * rows // view.pixels.shape[-2]
    hidden = view.mask.hidden[0].unflatten(1, (rows, columns))[:, ::factor, ::factor].flatten(1)  # type: ignore[union-attr]
    order = hidden.int().argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    mask = view.mask._replace(hidden=hidden, keep=order[:, :visible], drop=order[:, visible:])  # type: ignore[union-attr]
    coarse = batch._replace(views=[view._replace(mask=mask.map(lambda t: t.unsqueeze(0)))])
    assert_close(build(golden, export)(coarse, START).loss, golden["out/loss"], FORWARD, "loss")


def test_gradients(golden: Golden, export: Path) -> None:
    model = build(golden, export)
    model(batch_of(golden), START).loss.backward()
    assert_gradients(model, golden.some("grad"), ours, as_ours=head_as_ours(golden))
    if "out/grad_norm_total" in golden:
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        assert_close(torch.stack(norms).norm(), golden["out/grad_norm_total"], BACKWARD, "norm of all gradients")


def test_parameter_groups(folder: Path) -> None:
    """Mask token undecayed, tables decayed: which parameters decay follows from names and axes, any width will do."""
    for network, official in read_json(folder / "param_groups_pretrain.json").items():
        names = [name.removeprefix("encoder.") for name in (*official["decay"], *official["no_decay"])]
        if not any(name.startswith("layers.") for name in names):
            continue
        depths, bias = depths_of(names), any(name.endswith("qkv.bias") for name in names)
        stride, heads = 2 << (len(depths) - 1), (1,) * len(depths)
        sizes = {"patch_size": stride, "width": 8, "depth": depths, "heads": heads, "window": 2, "qkv_bias": bias}
        encoder = EncoderConfig.model_validate({"model": MODEL, **sizes})
        view = View(size=2 * stride, mask=RandomMask(unit=stride))
        decayed = names_by_decay(Config(view=view, encoder=encoder).build())
        assert decayed[True] == {ours(name) for name in official["decay"]}, network
        assert decayed[False] == {ours(name) for name in official["no_decay"]}, network
