"""I-JEPA against numbers of the official code (facebookresearch/ijepa)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import Golden, assert_close, read_json
from parity.statistics import LIMIT
from parity.vit import (
    FORWARD,
    START,
    assert_gradients,
    depth_of,
    encoder_config,
    mlp_ratio,
    names_by_decay,
    shapes_under,
    use_eps,
)
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.importers.ijepa import PREDICTOR
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.multi_block import Config as MultiBlockMask
from unlabeled.data.view.views import View
from unlabeled.nn.curves import warmup
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.ijepa import IJEPA, Config, PredictorConfig
from unlabeled.train.optim import set_rates
from unlabeled.train.optimizers.adamw import Config as AdamW
from unlabeled.train.schedules.step_cosine import Config as StepCosine

# official networks by the beginning of their names: width, attention heads
VARIANTS = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12), "vit_large": (1024, 16)}


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


def ours(name: str) -> str:
    """Our name of an official parameter: those of encoder and predictor by `encoder.` and `predictor.`."""
    part, _, rest = name.partition(".")
    if part != "predictor":
        return f"{part}.vit.{rest}"
    rule = next(rule for rule in PREDICTOR if rest.startswith(rule.official))
    return rule.ours + rest.removeprefix(rule.official)


def predictor_of(shapes: Any) -> PredictorConfig:
    hidden, width = shapes["predictor_blocks.0.mlp.fc1.weight"]
    return PredictorConfig(width=width, depth=depth_of(shapes, "predictor_blocks."), mlp_ratio=mlp_ratio(hidden, width))


@pytest.fixture
def model(golden: Golden) -> IJEPA:
    """The model of the set."""
    shapes = shapes_under(golden, "sd_encoder/")
    built = Config(
        view=View(size=golden.shape("in/images")[-2:], mask=MultiBlockMask(min_keep=0)),
        encoder=encoder_config(shapes, golden.config, "vit_base_patch16_gap_224"),
        predictor=predictor_of(shapes_under(golden, "sd_predictor/")),
    ).build()
    parts = {"encoder": "sd_encoder", "predictor": "sd_predictor", "teacher": "sd_target"}
    state = {ours(f"{part}.{n}"): t for part, where in parts.items() for n, t in golden.under(where).items()}
    built.load_state_dict(state)
    use_eps(built, golden.config)
    return built.train()


def contexts(golden: Golden) -> list[Tensor]:
    return [golden[f"in/mask_enc{i}"] for i in sorted(golden.found(r"in/mask_enc(\d+)$"), key=int)]


def mask_of(golden: Golden, keep: Tensor) -> PatchMask:
    """One of the contexts [B, K], and all targets."""
    targets = [golden[f"in/mask_pred{i}"] for i in sorted(golden.found(r"in/mask_pred(\d+)$"), key=int)]
    patches = golden.shape("out/target_tokens")[1]
    hidden = torch.ones(len(keep), patches, dtype=torch.bool).scatter(1, keep, False)
    drop = hidden.nonzero()[:, 1].view(len(keep), -1)
    return PatchMask(hidden, keep, drop, torch.stack(targets, 1))


def in_official_order(by_context: list[Tensor]) -> Tensor:
    """Rows [B, T, M, D] of each context: targets outermost, then contexts, then images [T * E * B, M, D]."""
    return torch.stack(by_context).permute(2, 0, 1, 3, 4).flatten(0, 2)


def test_tokens_of_encoder_and_teacher(golden: Golden, model: IJEPA) -> None:
    images, masks = golden["in/images"], [mask_of(golden, keep) for keep in contexts(golden)]
    seen = torch.cat([model.encoder(images, drop=mask).patches for mask in masks])
    assert_close(seen, golden["out/context_tokens"], FORWARD, "context")
    whole, _ = model.teach(images, masks[0])
    assert_close(whole.patches, golden["out/target_tokens"], FORWARD, "teacher")


def test_targets_and_predictions(golden: Golden, model: IJEPA) -> None:
    images, masks = golden["in/images"], [mask_of(golden, keep) for keep in contexts(golden)]
    targets = [model.teach(images, mask)[1] for mask in masks]
    assert_close(in_official_order(targets), golden["out/targets"], FORWARD, "targets")
    predicted = [model.predictor(model.encoder(images, drop=mask), mask) for mask in masks]
    assert_close(in_official_order(predicted), golden["out/prediction"], FORWARD, "prediction")


def test_loss_and_gradients(golden: Golden, model: IJEPA) -> None:
    """Officially several contexts count alike: their mean is taken here."""
    images, losses = golden["in/images"], []
    for keep in contexts(golden):
        mask = mask_of(golden, keep).map(lambda tensor: tensor.unsqueeze(0))
        numbers = torch.arange(len(images))
        losses.append(model(Batch([ViewBatch(images.unsqueeze(0), mask)], numbers, numbers), START).loss)
    loss = torch.stack(losses).mean()
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    loss.backward()
    assert_gradients(model, golden.some("grad"), ours)


def test_positions_inside_the_weights(golden: Golden) -> None:
    patch = golden.shape("sd_encoder/patch_embed.proj.weight")[-1]
    rows, columns = (side // patch for side in golden.shape("in/images")[-2:])
    for key in ("sd_encoder/pos_embed", "sd_target/pos_embed", "sd_predictor/predictor_pos_embed"):
        table = golden[key]
        assert_close(with_prefix(sincos_2d(table.shape[-1], (rows, columns)), 0), table, FORWARD, key)


def test_schedules(folder: Path) -> None:
    """Rates and weight decay as a run writes them into the groups of its optimizer, and momenta."""
    golden = Golden(folder / "schedules.safetensors")
    c = golden.config
    epochs = c.get("scale", 1.0) * c["ep"]
    steps = int(epochs * c["ipe"])  # officially of rate and weight decay; the momentum's part of a step counts, too
    optim = AdamW(
        base_lr=c["ref"],
        lr_rule="none",
        warmup_lr=c["start"],
        min_lr=c["fin"],
        warmup_epochs=c["warm"],
        weight_decay=c["wd"],
        weight_decay_end=c["fwd"],
        schedule=StepCosine(),
    )
    group: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "decays": True}
    optimizer, found = optim.build([{**group, "weight_decay": 0.0}]), []
    start, end = c["ema"]
    for step in range(len(golden["out/lr"])):
        progress = Progress(step, steps, step / c["ipe"], epochs)
        set_rates(optimizer, optim, optim.peak(2048), progress)
        rates = optimizer.param_groups[0]
        found.append((rates["lr"], rates["weight_decay"], warmup(start, end, step / (epochs * c["ipe"]))))
    mine = torch.tensor(found, dtype=torch.float64).T
    for name, values in zip(("lr", "weight_decay", "momentum"), mine, strict=True):
        assert_close(values, golden[f"out/{name}"].double(), 1e-12, name)


def test_parameter_groups_and_initial_weights(folder: Path) -> None:
    """Names and numbers of axes decide which parameters decay; the deviations are those of a network of its size."""
    official = read_json(folder / "param_groups.json")
    words = re.match(r"(vit_\w+?)\W.*predictor (\d+) wide, (\d+) deep", official["model"])
    assert words, f"unknown model {official['model']}"
    (width, heads), names = VARIANTS[words[1]], [*official["decay"], *official["no_decay"]]
    # the set does not tell the size of its images: that of the positions, which nothing draws
    table = official["init_std"]["pos_embed"]
    side = next(n for n in range(2, 65) if abs(sincos_2d(width, (n, n)).std().item() - table) < 6e-5)
    torch.manual_seed(0)
    model = Config(
        view=View(size=16 * side, mask=MultiBlockMask(min_keep=0)),
        encoder=EncoderConfig(
            model="vit_base_patch16_gap_224", width=width, heads=heads, depth=depth_of(names, "encoder.blocks.")
        ),
        predictor=PredictorConfig(width=int(words[2]), depth=int(words[3])),
    ).build()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith("teacher.")}
    assert fixed == {ours(name) for name in official["frozen"]}
    decayed = names_by_decay(model)
    assert decayed[True] == {ours(name) for name in official["decay"]} - fixed
    assert decayed[False] == {ours(name) for name in official["no_decay"]}

    state = model.state_dict()
    for name, deviation in official["init_std"].items():
        known = ours(name if name.startswith("predictor.") else f"encoder.{name}")
        mine, error = state[known], 0.0 if known in fixed else deviation / math.sqrt(state[known].numel())
        assert abs(mine.std().item() - deviation) <= LIMIT * error + 6e-5, name
    for name in (name for name in official["no_decay"] if name.endswith("bias")):
        assert not state[ours(name)].any(), name
