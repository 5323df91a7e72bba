"""MAE against numbers of the official code (facebookresearch/mae)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close, each, read_json
from torch import Tensor

from unlabeled.data.masks import RandomMask
from unlabeled.data.views import View
from unlabeled.export import load_method
from unlabeled.importers import import_official
from unlabeled.importers.mae import RULES
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.mae import MAE, Config
from unlabeled.nn.decoders import SelfDecoderConfig
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.patches import PatchMask, gather, patchify
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.train.optim import param_groups
from unlabeled.train.schedules import Cosine, Ramp
from unlabeled.transfer.classify import Classifier
from unlabeled.transfer.config import ClassifyConfig

FORWARD, BACKWARD = 1e-5, 2e-5
START = Progress(0, 1, 0.0, 1.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per mask ratio and target mode of whatever set is given."""
    if "ratio" in metafunc.fixturenames:
        metafunc.parametrize("ratio", each(metafunc.config, "mae", "model", "mask_ratios"))
    if "targets" in metafunc.fixturenames:
        metafunc.parametrize("targets", ["npl0", "npl1"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


@pytest.fixture(scope="module")
def export(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights, through the importer, as an export folder."""
    home = tmp_path_factory.mktemp("mae")
    torch.save({"model": golden.under("sd")}, home / "official.pth")
    import_official("mae", home / "official.pth", home / "export", heads=golden.config["num_heads"])
    return home / "export"


def build(golden: Golden, export: Path, targets: str = "npl1") -> MAE:
    config = golden.config
    assert (config["mlp_ratio"], config["ln_eps"]) == (4, 1e-6), "MAE has MLP ratio 4 and LayerNorm eps 1e-6"
    model = Config(
        view=View(size=config["img_size"], mask=RandomMask()),
        encoder=EncoderConfig(
            model="vit_base_patch16_224",
            patch_size=config["patch_size"],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            channels=config["in_chans"],
        ),
        decoder=SelfDecoderConfig(
            width=config["decoder_embed_dim"],
            depth=config["decoder_depth"],
            heads=config["decoder_num_heads"],
        ),
        normalize_targets=targets == "npl1",
    ).build()
    load_method(model, export)
    return model.train()


def mask_of(golden: Golden, ratio: str) -> PatchMask:
    """The mask that the official noise gives, kept patches in the official order."""
    noise = golden[f"in/noise_{ratio}"]
    order = noise.argsort(dim=1)
    patches = noise.shape[1]
    kept = patches - RandomMask(ratio=golden.config["mask_ratios"][ratio]).hidden(patches)
    keep, drop = order[:, :kept], order[:, kept:]
    hidden = torch.zeros_like(noise, dtype=torch.bool).scatter(1, drop, True)
    return PatchMask(hidden, keep, drop)


def batch_of(golden: Golden, ratio: str) -> Batch:
    mask = PatchMask(*(t.unsqueeze(0) for t in mask_of(golden, ratio)))  # type: ignore[union-attr]
    images = golden["in/imgs"]
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def ours(name: str) -> str:
    """Our name of an official MAE parameter."""
    rule = next(rule for rule in RULES if name.startswith(rule.official))
    return f"encoder.vit.{name}" if rule.to == "encoder" else rule.ours + name.removeprefix(rule.official)


def test_mask_follows_the_official_noise(golden: Golden, ratio: str) -> None:
    mask = mask_of(golden, ratio)
    assert torch.equal(mask.hidden.float(), golden[f"out/{ratio}/mask"])
    assert torch.equal(mask.keep, golden[f"out/{ratio}/ids_keep"])


def test_latent(golden: Golden, export: Path, ratio: str) -> None:
    with torch.no_grad():
        tokens = build(golden, export).encoder(golden["in/imgs"], drop=mask_of(golden, ratio))
    latent = torch.cat([tokens.prefix, tokens.patches], dim=1)
    assert_close(latent, golden[f"out/{ratio}/latent"], FORWARD, "latent")


def test_prediction_of_every_patch(golden: Golden, export: Path, ratio: str) -> None:
    model, mask = build(golden, export), mask_of(golden, ratio)
    everything = torch.arange(mask.hidden.shape[1]).expand(len(mask.hidden), -1)
    with torch.no_grad():
        prediction = model.decoder(model.encoder(golden["in/imgs"], drop=mask), mask, index=everything)
    assert_close(prediction, golden[f"out/{ratio}/pred"], FORWARD, "pred")


def test_targets_in_official_order(golden: Golden) -> None:
    patches = patchify(golden["in/imgs"], golden.config["patch_size"])
    assert torch.equal(patches, golden["out/patchify"])


def test_loss(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    output = build(golden, export, targets)(batch_of(golden, ratio), START)
    assert_close(output.loss, golden[f"out/{ratio}/loss_{targets}"], FORWARD, "loss")


def test_loss_gradient_at_the_prediction(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    model, caught = build(golden, export, targets), []
    model.decoder.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), caught.append(out))[0])
    model(batch_of(golden, ratio), START).loss.backward()
    official = golden[f"out/{ratio}/dloss_dpred_{targets}"]
    drop = mask_of(golden, ratio).drop
    assert drop is not None
    assert_close(caught[0].grad, gather(official, drop), BACKWARD, "dloss/dpred")
    assert official.scatter(1, drop.unsqueeze(-1).expand(-1, -1, official.shape[-1]), 0).count_nonzero() == 0


def test_gradients(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    official = golden.under(f"grad_{ratio}_{targets}")
    model = build(golden, export, targets)
    model(batch_of(golden, ratio), START).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {ours(name) for name in official} == gradients.keys()
    for name, gradient in official.items():
        mine = gradients[ours(name)]
        assert mine is not None
        assert_close(mine, gradient, BACKWARD, name)


def test_sincos_tables_inside_the_weights(golden: Golden) -> None:
    config = golden.config
    side = config["img_size"] // config["patch_size"]
    for key, width in (
        ("sd/pos_embed", config["embed_dim"]),
        ("sd/decoder_pos_embed", config["decoder_embed_dim"]),
    ):
        assert_close(with_prefix(sincos_2d(width, (side, side)), 1), golden[key], FORWARD, key)


def test_sincos_tables(folder: Path) -> None:
    tables = Golden(folder / "pos_embed.safetensors").under("out")
    for key, table in tables.items():
        shape = re.fullmatch(r"pos_embed_(\d+)x(\d+)_(\d+)(_nocls)?(_f64)?", key)
        assert shape, f"unknown key {key}"
        rows, columns, width = (int(shape[i]) for i in (1, 2, 3))
        mine = sincos_2d(width, (rows, columns))
        mine = mine if shape[4] else torch.cat([mine.new_zeros(1, width), mine])
        assert_close(mine.to(table.dtype), table, FORWARD, key)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_schedule(folder: Path, stage: str) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c = golden.config[stage]
    ramp = Ramp(0.0, c["lr"], c["min_lr"], c["warmup_epochs"])
    rates = [Cosine().at(Progress(0, 1, float(e), c["epochs"]), ramp) for e in golden[f"in/{stage}_epoch"]]
    mine = torch.tensor(rates, dtype=torch.float64)
    assert_close(mine, golden[f"out/{stage}_lr"], 1e-12, "lr")
    scales = torch.tensor(c.get("lr_scale", [1.0]), dtype=torch.float64)
    assert_close(mine[:, None] * scales, golden[f"out/{stage}_group_lr"], 1e-12, "group lr")


def test_pretraining_parameter_groups(golden: Golden, export: Path, folder: Path) -> None:
    official = read_json(folder / "param_groups_pretrain.json")["tiny"]
    model = build(golden, export)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {g["weight_decay"] > 0: {names[id(p)] for p in g["params"]} for g in param_groups(model, 0.05)}
    assert decayed[True] == {ours(name) for name in official["decay"]}
    assert decayed[False] == {ours(name) for name in official["no_decay"]}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {ours(name) for name in official["frozen"]}


def test_layer_decay_of_vit_b(folder: Path) -> None:
    for setting, official in read_json(folder / "lr_decay_vit_b.json").items():
        parts = re.fullmatch(r"global_pool=(True|False),layer_decay=([\d.]+)", setting)
        assert parts, f"unknown setting {setting}"
        model = classifier("mean" if parts[1] == "True" else "cls", float(parts[2]))
        groups = param_groups(model, weight_decay=0.05)
        assert len(groups) == official["num_groups"]
        rules = {id(p): group for group in groups for p in group["params"]}
        mine = {name.removeprefix("model."): rules[id(p)] for name, p in model.named_parameters()}
        assert mine.keys() == official["params"].keys()
        for name, expected in official["params"].items():
            assert model.layers[name] == expected["layer_id"], name
            assert mine[name]["lr_scale"] == pytest.approx(expected["lr_scale"], rel=1e-12), name
            assert mine[name]["weight_decay"] == expected["weight_decay"], name


def classifier(pool: str, layer_decay: float) -> Classifier:
    """A ViT-B classifier without memory for its weights."""
    with torch.device("meta"):
        encoder = EncoderConfig(model="vit_base_patch16_224", positions="learned").build((224, 224))
        config = ClassifyConfig(mode="differential_lr", pool=pool, layer_decay=layer_decay)  # type: ignore[arg-type]
        return Classifier(encoder, config, [1300] * 1000)


def test_golden_formulas() -> None:
    """METHODS' own check values, independent of any file."""
    row_1_column_2 = sincos_2d(8, (2, 3))[1 * 3 + 2]
    angles = torch.tensor([2.0, 0.02, 1.0, 0.01], dtype=torch.float64)
    expected = torch.cat([angles[:2].sin(), angles[:2].cos(), angles[2:].sin(), angles[2:].cos()])
    torch.testing.assert_close(row_1_column_2, expected)
    assert RandomMask(ratio=0.75).hidden(196) == 147
    zero_prediction: Tensor = torch.tensor(767 / 768)
    noise = torch.randn(4, 10, 768, generator=torch.Generator().manual_seed(0))
    from unlabeled.nn.patches import normalize_patches

    torch.testing.assert_close(normalize_patches(noise).square().mean(), zero_prediction, rtol=1e-5, atol=0)
