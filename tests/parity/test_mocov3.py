"""MoCo v3 against numbers of the official code (facebookresearch/moco-v3)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from begun import load_method
from parity.golden import Golden, Settings, assert_close, assert_gradient_at, peek
from parity.mocov3 import ours
from parity.vit import (
    BACKWARD,
    FORWARD,
    START,
    assert_gradients,
    encoder_config,
    heads_in,
    shapes_under,
    use_eps,
    without_keys,
)
from torch import Tensor

from unlabeled.backbone.weights import import_official
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.nn.curves import cosine
from unlabeled.nn.loss.contrast import info_nce
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.nn.teacher import ema_
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.mocov3 import Branch, Config, MoCoV3
from unlabeled.train.optimizers.lars import LARS
from unlabeled.train.schedule import Ramp
from unlabeled.train.schedules.cosine import Config as Cosine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per temperature, optimizer and table of whatever set is given, as its names tell."""
    patterns = {
        "temperature": ("model", r"out/loss_T([\d.]+)$"),
        "contrast": ("contrastive", r"out/loss_T([\d.]+)$"),
        "optimizer": ("lars", r"out/(\w+)/p_after"),
        "table": ("pos_embed", r"out/(\w+)$"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "mocov3", f"{file}.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


def config_of(golden: Golden, temperature: float = 0.2, heads: int | None = None) -> Config:
    """Our settings of the set's network."""
    shapes, c = shapes_under(golden, "sd/base_encoder."), golden.config
    settings = Settings({**c, "num_heads": heads}) if heads else c
    view = View(size=golden.shape("in/x1")[-2:])
    return Config(
        first=view,
        second=view,
        encoder=encoder_config(shapes, settings, "vit_small_patch16_224", positions="sincos_rows"),
        freeze_patches=c.get("stop_grad_conv1", True),
        hidden=shapes["head.0.weight"][0],
        dim=golden.shape("out/q1")[1],
        temperature=temperature,
    )


def build(golden: Golden, temperature: float = 0.2) -> MoCoV3:
    """The model of the set, before its step; the teacher has taken the update that precedes its keys."""
    model = config_of(golden, temperature).build()
    model.load_state_dict({ours(name): tensor for name, tensor in golden.under("sd").items()})
    ema_(model.teacher, model, golden.config.get("momentum_teacher", 0.99))
    use_eps(model, golden.config)
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


def test_loss_and_gradients(golden: Golden, temperature: str) -> None:
    model = build(golden, float(temperature))
    loss = model(views(golden), START).loss
    assert_close(loss, golden[f"out/loss_T{temperature}"], FORWARD, "loss")
    loss.backward()
    # the norm's bias shifts all class tokens alike, and batch normalisation takes that out
    assert_gradients(model, golden.some(f"grad_T{temperature}"), ours, ["base_encoder.norm.bias"])


def test_both_terms_of_the_loss(golden: Golden, temperature: str) -> None:
    """From the official queries and keys: the first view's queries meet the second view's keys, and the reverse."""
    for query, key in ((1, 2), (2, 1)):
        term = info_nce(golden[f"out/q{query}"], golden[f"out/k{key}"], 0, float(temperature))
        assert_close(term, golden[f"out/loss_q{query}k{key}_T{temperature}"], FORWARD, f"q{query} and k{key}")


def test_state_after_the_step(golden: Golden) -> None:
    """The teacher's parameters, and the running statistics that forwards leave."""
    model = build(golden)
    model(views(golden), START)
    state = model.state_dict()
    for name, tensor in golden.some("after").items():
        mine = state[ours(name)].double()
        if name.endswith("attn.qkv.bias"):
            mine, tensor = without_keys(mine), without_keys(tensor)
        assert_close(mine, tensor.double(), FORWARD, name)


def test_the_imported_network(golden: Golden, tmp_path: Path) -> None:
    """Projections by timm alone; another number of heads has the same shapes and other features."""
    weights = {f"module.{name}": tensor for name, tensor in golden.under("sd").items()}
    torch.save({"state_dict": weights}, tmp_path / "official.pth")
    width = len(weights["module.base_encoder.patch_embed.proj.weight"])
    right = heads_in(golden.config, width)
    for heads in (right, next(n for n in range(1, width + 1) if width % n == 0 and n != right)):
        home = tmp_path / str(heads)
        import_official("mocov3", tmp_path / "official.pth", home, heads)
        backbone = timm.create_model(f"local-dir:{home}", pretrained=True).eval()
        method = config_of(golden, heads=heads).build().train()
        load_method(method, home)
        use_eps(backbone, golden.config)
        with torch.no_grad():
            projected = method.projector(backbone.forward_features(golden["in/x1"])[:, 0])
        official = golden["out/z1"]
        if heads == right:
            assert_close(projected, official, FORWARD, "z1")
        else:
            assert (projected - official).abs().max() > 0.01 * official.abs().max()


def test_positions(folder: Path, table: str) -> None:
    golden = Golden(folder / "pos_embed.safetensors")
    size = re.fullmatch(r"pos_embed_(\d+)x(\d+)_(\d+)", table)
    assert size, f"unknown key {table}"
    rows, columns, width = map(int, size.groups())
    assert golden.config.get("T", 10000) == 10000, "the one temperature that official networks have"
    mine = with_prefix(sincos_2d(width, (rows, columns), rows_first=True), 1)
    assert_close(mine, golden[f"out/{table}"], FORWARD, table)


def test_contrastive_loss(folder: Path, contrast: str) -> None:
    golden = Golden(folder / "contrastive.safetensors")
    queries = golden["in/q"].requires_grad_()
    loss = info_nce(queries, golden["in/k"], 0, float(contrast))
    loss.backward()
    assert_close(loss, golden[f"out/loss_T{contrast}"], FORWARD, "loss")
    assert_gradient_at(queries.grad, golden, f"out/dloss_dq_T{contrast}", BACKWARD)


def test_lars(folder: Path, optimizer: str) -> None:
    golden = Golden(folder / "lars.safetensors")
    c: Any = golden.config.get("configs", golden.config)[optimizer]
    parameters = {key: torch.nn.Parameter(p) for key, p in golden.under("in/p").items()}
    lars = LARS(
        parameters.values(),
        lr=c["lr"],
        momentum=c.get("momentum", 0.9),
        weight_decay=c.get("weight_decay", 0.0),
        trust=c.get("trust_coefficient", golden.config.get("trust_coefficient", 0.001)),
    )
    for step in sorted(golden.found(r"in/g(\d+)/"), key=int):
        gradients = golden.under(f"in/g{step}")
        for key, parameter in parameters.items():
            parameter.grad = gradients.get(key)
        lars.step()
        for key, official in golden.under(f"out/{optimizer}/p_after{step}").items():
            assert_close(parameters[key], official, FORWARD, f"{key} after step {step}")
        for key, official in golden.under(f"out/{optimizer}/mu_after{step}").items():
            assert_close(lars.state[parameters[key]]["momentum_buffer"], official, FORWARD, f"velocity of {key}")


def test_schedules(folder: Path) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c, epochs = golden.config, golden["in/epoch"].tolist()
    ramp = Ramp(0.0, c["lr"], c.get("min_lr", 0.0), c.get("warmup_epochs", 0))
    rates = [Cosine().at(Progress(0, 1, epoch, c["epochs"]), ramp) for epoch in epochs]
    assert_close(torch.tensor(rates, dtype=torch.float64), golden["out/lr"].double(), 1e-12, "lr")
    momenta = [cosine(c.get("momentum_teacher", 0.99), 1.0, epoch / c["epochs"]) for epoch in epochs]
    assert_close(torch.tensor(momenta, dtype=torch.float64), golden["out/momentum"].double(), 1e-12, "momentum")
