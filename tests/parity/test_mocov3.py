"""MoCo v3 against numbers of the official code (facebookresearch/moco-v3)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close, each, read_json
from torch import Tensor

from unlabeled.data.views import View
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.mocov3 import Branch, Config, MoCoV3
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.losses import info_nce
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.nn.teacher import ema_
from unlabeled.train.optim import LARS

FORWARD, BACKWARD = 1e-5, 2e-5
START = Progress(0, 1, 0.0, 1.0)
# official name -> ours; anchored at the front, the first that fits
RENAMES = {
    "base_encoder.head.": "projector.",
    "base_encoder.": "encoder.vit.",
    "momentum_encoder.head.": "teacher.projector.",
    "momentum_encoder.": "teacher.encoder.vit.",
}


def ours(name: str) -> str:
    for old, new in RENAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per temperature of whatever set is given."""
    if "temperature" in metafunc.fixturenames:
        metafunc.parametrize("temperature", each(metafunc.config, "mocov3", "model", "T"))


def build(golden: Golden, temperature: float = 0.2) -> MoCoV3:
    """The model of the set, before its step; the teacher has taken the update that precedes its keys."""
    c = golden.config
    assert (c["mlp_ratio"], c["ln_eps"], c["qkv_bias"]) == (4, 1e-6, True)
    view = View(size=c["img_size"])
    encoder = EncoderConfig(
        model="vit_small_patch16_224",
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        positions="sincos_rows",
    )
    model = Config(
        first=view,
        second=view,
        encoder=encoder,
        freeze_patches=c["stop_grad_conv1"],
        hidden=c["moco_mlp_dim"],
        dim=c["moco_dim"],
        temperature=temperature,
    ).build()
    model.load_state_dict({ours(name): tensor for name, tensor in golden.under("sd").items()})
    ema_(model.teacher, model, c["m"])
    return model.train()


def views(golden: Golden) -> Batch:
    images = [golden["in/x1"], golden["in/x2"]]
    labels = torch.zeros(len(images[0]), dtype=torch.int64)
    return Batch([ViewBatch(image[None], None) for image in images], labels, labels)


def halves(branch: Branch | MoCoV3, images: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (branch.projector(view) for view in branch.encoder(images).prefix[:, 0].chunk(2))  # type: ignore[operator, union-attr]
    return first, second


def test_queries_and_keys(golden: Golden) -> None:
    model = build(golden)
    images = torch.cat([golden["in/x1"], golden["in/x2"]])
    projected = halves(model, images)
    for i, z in enumerate(projected, 1):
        assert_close(z, golden[f"out/z{i}"], FORWARD, f"z{i}")
        assert_close(model.predictor(z), golden[f"out/q{i}"], FORWARD, f"q{i}")
    for i, key in enumerate(halves(model.teacher, images), 1):
        assert_close(key, golden[f"out/k{i}"], FORWARD, f"k{i}")


def test_loss_and_gradients(golden: Golden, temperature: float) -> None:
    model = build(golden, temperature)
    loss = model(views(golden), START).loss
    assert_close(loss, golden[f"out/loss_T{temperature}"], FORWARD, "loss")
    loss.backward()
    mine = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    official = {ours(name): g for name, g in golden.under(f"grad_T{temperature}").items()}
    assert official.keys() <= mine.keys()
    # analytically zero: the norm's bias shifts all class tokens alike, and batch normalisation takes that out
    zero = "encoder.vit.norm.bias"
    for name, gradient in official.items():
        if name == zero:
            assert mine[name].abs().max() < 1e-5  # type: ignore[union-attr]
        elif name.endswith("attn.qkv.bias"):
            width = len(gradient) // 3  # so is the key third
            parts = (torch.cat([g[:width], g[2 * width :]]) for g in (mine[name], gradient))  # type: ignore[index]
            assert_close(*parts, BACKWARD, name)
        else:
            assert_close(mine[name], gradient, BACKWARD, name)  # type: ignore[arg-type]


def test_state_after_the_step(golden: Golden) -> None:
    """The teacher's parameters, and the running statistics that forwards leave."""
    model = build(golden)
    model(views(golden), START)
    state = model.state_dict()
    for name, tensor in golden.under("after").items():
        assert_close(state[ours(name)].double(), tensor.double(), FORWARD, name)


@pytest.mark.parametrize("key", ["out/pos_embed_14x14_48", "out/pos_embed_4x4_48"])
def test_positions(folder: Path, key: str) -> None:
    table = Golden(folder / "pos_embed.safetensors")[key]
    side = int(key.split("_")[-2].split("x")[0])
    assert_close(with_prefix(sincos_2d(table.shape[-1], (side, side), rows_first=True), 1), table, FORWARD, key)


def test_contrastive_loss(folder: Path) -> None:
    golden = Golden(folder / "contrastive.safetensors")
    for temperature in golden.config["T"]:
        queries = golden["in/q"].clone().requires_grad_()
        loss = info_nce(queries, golden["in/k"], 0, temperature)
        loss.backward()
        assert queries.grad is not None
        assert_close(loss, golden[f"out/loss_T{temperature}"], FORWARD, f"loss at {temperature}")
        assert_close(queries.grad, golden[f"out/dloss_dq_T{temperature}"], BACKWARD, f"gradient at {temperature}")


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_lars(folder: Path, name: str) -> None:
    golden = Golden(folder / "lars.safetensors")
    settings = golden.config["configs"][name]
    parameters = {key: torch.nn.Parameter(p.clone()) for key, p in golden.under("in/p").items()}
    optimizer = LARS(parameters.values(), **settings, trust=golden.config["trust_coefficient"])
    for step in (1, 2):
        for key, gradient in golden.under(f"in/g{step}").items():
            parameters[key].grad = gradient.clone()
        optimizer.step()
        for key, official in golden.under(f"out/{name}/p_after{step}").items():
            assert_close(parameters[key], official, FORWARD, f"{key} after step {step}")
        for key, official in golden.under(f"out/{name}/mu_after{step}").items():
            assert_close(optimizer.state[parameters[key]]["momentum_buffer"], official, FORWARD, f"velocity of {key}")


def test_initial_ranges_and_what_is_frozen(folder: Path) -> None:
    official = read_json(folder / "init_and_requires_grad.json")["vit_small_moco_dim256_mlp4096_stop_grad"]
    torch.manual_seed(0)
    model = Config(
        encoder=EncoderConfig(model="vit_small_patch16_224", heads=12, depth=1, positions="sincos_rows")
    ).build()
    vit, bounds = model.encoder.vit, official["bounds"]
    block = vit.blocks[0]
    for key, weight in (
        ("qkv", block.attn.qkv.weight),
        ("attn_proj", block.attn.proj.weight),
        ("mlp", block.mlp.fc1.weight),
        ("patch_proj", vit.patch_embed.proj.weight),
    ):
        assert bounds[key] * 0.999 < weight.abs().max() <= bounds[key], key
    assert not vit.patch_embed.proj.bias.any() and vit.cls_token.std() < 2e-6
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith("teacher.")}
    theirs = {ours(name) for name in official["frozen"] if not name.startswith("momentum_encoder.")}
    assert frozen == theirs
    assert all(not p.requires_grad for p in model.teacher.parameters())
    for head in (model.projector, model.predictor):
        assert head[0].weight.abs().max() <= head[0].in_features ** -0.5
