"""MAE against numbers of the official code (facebookresearch/mae)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import load_method
from parity.golden import Golden, assert_begins, assert_close, assert_gradient_at, peek, read_json
from parity.vit import (
    BACKWARD,
    FORWARD,
    START,
    assert_gradients,
    depth_of,
    encoder_config,
    heads_in,
    mlp_ratio,
    names_by_decay,
    shapes_under,
    use_eps,
)
from support import classifying

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.importers.mae import RULES
from unlabeled.backbone.weights import import_official
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask, normalize_patches, patchify
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.pretrain.decoders.self import Config as SelfDecoder
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.mae import MAE, Config
from unlabeled.train.optim import param_groups
from unlabeled.train.schedule import Ramp
from unlabeled.train.schedules.cosine import Config as Cosine
from unlabeled.transfer.tasks.classify import Classifier


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per mask ratio, kind of targets and stage of whatever set is given, as its names tell."""
    patterns = {
        "ratio": ("model", r"out/(\w+)/pred$"),
        "targets": ("model", r"out/\w+/loss_(\w+)$"),
        "stage": ("schedules", r"out/(\w+)_lr$"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "mae", f"{file}.safetensors")
            found = [] if golden is None else golden.found(pattern)
            metafunc.parametrize(name, [s for s in found if not s.endswith("_group")] or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


@pytest.fixture(scope="module")
def export(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights, through the importer, as an export folder."""
    home = tmp_path_factory.mktemp("mae")
    weights = dict(golden.under("sd"))
    torch.save({"model": weights}, home / "official.pth")
    heads = heads_in(golden.config, len(weights["patch_embed.proj.weight"]))
    import_official("mae", home / "official.pth", home / "export", heads=heads)
    return home / "export"


def build(golden: Golden, export: Path | None, targets: str = "npl1") -> MAE:
    """The network of the official weights; `targets` ends in 1 where they are normalised."""
    shapes, settings = shapes_under(golden, "sd/"), golden.config
    hidden, width = shapes["decoder_blocks.0.mlp.fc1.weight"]
    model = Config(
        view=View(size=golden.shape("in/imgs")[-2:], mask=RandomMask()),
        encoder=encoder_config(shapes, settings),
        decoder=SelfDecoder(
            width=width,
            depth=depth_of(shapes, "decoder_blocks."),
            heads=heads_in(settings, 2 * width, "decoder_num_heads"),
            mlp_ratio=mlp_ratio(hidden, width),
        ),
        normalize_targets=targets.endswith("1"),
    ).build()
    if export is not None:
        load_method(model, export)
    use_eps(model, settings)
    return model.train()


class Noise:
    """A generator whose next noise is given."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise.double().numpy()

    def random(self, n: int) -> Any:
        assert n == len(self.noise)
        return self.noise


def ratio_of(golden: Golden, ratio: str) -> float:
    """The mask ratio of a name: as the settings say, else its digits in percent."""
    return golden.config.get("mask_ratios", {}).get(ratio) or int("".join(filter(str.isdigit, ratio))) / 100


def mask_of(golden: Golden, ratio: str) -> PatchMask:
    """The masks that our generator draws from the official noise."""
    patch = golden.shape("sd/patch_embed.proj.weight")[-1]
    height, width = golden.shape("in/imgs")[-2:]
    mask = RandomMask(ratio=ratio_of(golden, ratio))
    drawn: list[Any] = [Noise(noise) for noise in golden[f"in/noise_{ratio}"]]
    return PatchMask.stack([mask.draw(rng, (height // patch, width // patch), patch) for rng in drawn])


def batch_of(golden: Golden, ratio: str) -> Batch:
    mask = mask_of(golden, ratio).map(lambda tensor: tensor.unsqueeze(0))
    images = golden["in/imgs"]
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def ours(name: str) -> str:
    """Our name of an official MAE parameter."""
    rule = next(rule for rule in RULES if name.startswith(rule.official))
    return f"encoder.vit.{name}" if rule.to == "encoder" else rule.ours + name.removeprefix(rule.official)


def test_mask_follows_the_official_noise(golden: Golden, ratio: str) -> None:
    mask = mask_of(golden, ratio)
    order = torch.cat(mask.indices(), dim=1)
    assert torch.equal(mask.hidden.float(), golden[f"out/{ratio}/mask"])
    assert torch.equal(mask.indices()[0], golden[f"out/{ratio}/ids_keep"])
    assert torch.equal(order, golden[f"out/{ratio}/ids_shuffle"])
    assert torch.equal(order.argsort(dim=1), golden[f"out/{ratio}/ids_restore"])


def test_latent(golden: Golden, export: Path, ratio: str) -> None:
    with torch.no_grad():
        tokens = build(golden, export).encoder(golden["in/imgs"], drop=mask_of(golden, ratio))
    assert_begins(torch.cat([tokens.prefix, tokens.patches], dim=1), golden[f"out/{ratio}/latent"], FORWARD, "latent")


def test_prediction_of_every_patch(golden: Golden, export: Path, ratio: str) -> None:
    model, mask = build(golden, export), mask_of(golden, ratio)
    everything = torch.arange(mask.hidden.shape[1]).expand(len(mask.hidden), -1)
    with torch.no_grad():
        prediction = model.decoder(model.encoder(golden["in/imgs"], drop=mask), mask, index=everything)
    assert_begins(prediction, golden[f"out/{ratio}/pred"], FORWARD, "pred")


def test_targets_in_official_order(golden: Golden) -> None:
    official = golden["out/patchify"]
    patches = patchify(golden["in/imgs"], golden.shape("sd/patch_embed.proj.weight")[-1])
    assert torch.equal(patches[: len(official)], official)


def test_loss(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    output = build(golden, export, targets)(batch_of(golden, ratio), START)
    assert_close(output.loss, golden[f"out/{ratio}/loss_{targets}"], FORWARD, "loss")


def test_loss_gradient_at_the_prediction(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    model, caught = build(golden, export, targets), []
    model.decoder.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), caught.append(out))[0])
    model(batch_of(golden, ratio), START).loss.backward()
    at_hidden, drop = caught[0].grad, mask_of(golden, ratio).indices()[1]
    everywhere = torch.zeros(len(drop), golden.shape(f"in/noise_{ratio}")[1], at_hidden.shape[-1])
    everywhere.scatter_(1, drop.unsqueeze(-1).expand_as(at_hidden), at_hidden)
    assert_gradient_at(everywhere, golden, f"out/{ratio}/dloss_dpred_{targets}", BACKWARD)


def test_gradients(golden: Golden, export: Path, ratio: str, targets: str) -> None:
    model = build(golden, export, targets)
    model(batch_of(golden, ratio), START).loss.backward()
    assert_gradients(model, golden.some(f"grad_{ratio}_{targets}"), ours)


def test_sincos_tables_inside_the_weights(golden: Golden) -> None:
    patch = golden.shape("sd/patch_embed.proj.weight")[-1]
    rows, columns = (side // patch for side in golden.shape("in/imgs")[-2:])
    for key in ("sd/pos_embed", "sd/decoder_pos_embed"):
        table = golden[key]
        assert_close(with_prefix(sincos_2d(table.shape[-1], (rows, columns)), 1), table, FORWARD, key)


def test_sincos_tables(folder: Path) -> None:
    for key, table in Golden(folder / "pos_embed.safetensors").under("out").items():
        shape = re.fullmatch(r"pos_embed_(\d+)x(\d+)_(\d+)(_nocls)?(_f64)?", key)
        assert shape, f"unknown key {key}"
        rows, columns, width = (int(shape[i]) for i in (1, 2, 3))
        mine = sincos_2d(width, (rows, columns))
        mine = mine if shape[4] else torch.cat([mine.new_zeros(1, width), mine])
        assert_close(mine.to(table.dtype), table, FORWARD, key)


def test_schedule(folder: Path, stage: str) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c = golden.config[stage]
    ramp = Ramp(0.0, c["lr"], c.get("min_lr", 0.0), c.get("warmup_epochs", 0))
    rates = [Cosine().at(Progress(0, 1, float(e), c["epochs"]), ramp) for e in golden[f"in/{stage}_epoch"]]
    mine = torch.tensor(rates, dtype=torch.float64)
    assert_close(mine, golden[f"out/{stage}_lr"], 1e-12, "lr")
    scales = torch.tensor(c.get("lr_scale", [1.0]), dtype=torch.float64)
    assert_close(mine[:, None] * scales, golden[f"out/{stage}_group_lr"], 1e-12, "group lr")


def test_pretraining_parameter_groups(folder: Path) -> None:
    """Which parameters decay follows from their names and number of axes: any width will do."""
    for network, official in read_json(folder / "param_groups_pretrain.json").items():
        names = [*official["decay"], *official["no_decay"], *official["frozen"]]
        model = Config(
            view=View(size=8, mask=RandomMask()),
            encoder=EncoderConfig(patch_size=4, width=8, depth=depth_of(names), heads=2),
            decoder=SelfDecoder(width=8, depth=depth_of(names, "decoder_blocks."), heads=2),
        ).build()
        decayed = names_by_decay(model)
        assert decayed[True] == {ours(name) for name in official["decay"]}, network
        assert decayed[False] == {ours(name) for name in official["no_decay"]}, network
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {ours(name) for name in official["frozen"]}, network


def test_layer_decay(folder: Path) -> None:
    files = sorted(folder.glob("lr_decay*.json"))
    assert files, f"the set has no file {folder}/lr_decay*.json"
    for setting, official in [entry for file in files for entry in read_json(file).items()]:
        decay = re.search(r"layer_decay=([\d.]+)", setting)
        assert decay, f"unknown setting {setting}"
        params = official["params"]
        pool = "mean" if "fc_norm.weight" in params else "cls"  # officially global_pool
        model = classifier(pool, float(decay[1]), depth_of(params))
        groups = param_groups(model, weight_decay=max(p["weight_decay"] for p in params.values()))
        assert len(groups) == official["num_groups"]
        numbers = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
        mine = {name.removeprefix("model."): numbers[id(p)] for name, p in model.named_parameters()}
        assert mine.keys() == params.keys()
        assert len({(mine[name], p["group_index"]) for name, p in params.items()}) == len(groups), "other groups"
        for name, expected in params.items():
            group = groups[mine[name]]
            assert model.layers[name] == expected["layer_id"], name
            assert group["lr_scale"] == pytest.approx(expected["lr_scale"], rel=1e-12), name
            assert group["weight_decay"] == expected["weight_decay"], name


def classifier(pool: str, layer_decay: float, depth: int) -> Classifier:
    """A narrow ViT classifier: names and numbers of axes decide."""
    encoder = EncoderConfig(positions="learned", width=8, heads=2, depth=depth).build((32, 32))
    config = classifying("differential", pool=pool, layer_decay=layer_decay)
    return Classifier(encoder, config, [10] * 10)


def test_golden_formulas() -> None:
    """METHODS' own check values, independent of any file."""
    row_1_column_2 = sincos_2d(8, (2, 3))[1 * 3 + 2]
    angles = torch.tensor([2.0, 0.02, 1.0, 0.01], dtype=torch.float64)
    expected = torch.cat([angles[:2].sin(), angles[:2].cos(), angles[2:].sin(), angles[2:].cos()])
    torch.testing.assert_close(row_1_column_2, expected)
    assert RandomMask(ratio=0.75).hidden(196) == 147
    noise = torch.randn(4, 10, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalize_patches(noise).square().mean(), torch.tensor(767 / 768), rtol=1e-5, atol=0)
