"""Methods with a CNN: heads, batch normalisation, processes; and what refuses one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import ROOT, TINY_FINETUNE, UNSHOWN, checkpoint_bytes, launch, metrics, on_processes
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import mean_over_processes, rank, world
from unlabeled.nn.heads import HeadConfig
from unlabeled.pretrain.method import Method, Progress
from unlabeled.pretrain.methods import (
    barlowtwins,
    byol,
    dino,
    ibot,
    lejepa,
    mae,
    mocov3,
    msn,
    simclr,
    simmim,
    simsiam,
    swav,
    vicreg,
)

START = Progress(0, 100, 0.0, 10.0)
ROWS, SIDE = 8, 64
RESNET = EncoderConfig(model="test_resnet")
EFFICIENTNET = EncoderConfig(model="test_efficientnet")
WHOLE, MASKED = View(size=SIDE), View(size=SIDE, mask=RandomMask(ratio=0.5))
HEAD = HeadConfig(prototypes=20, hidden=16, bottleneck=8)
CONFIGS: dict[str, Any] = {
    "mocov3": mocov3.Config(first=WHOLE, second=WHOLE, encoder=RESNET, hidden=32, dim=8),
    "barlowtwins": barlowtwins.Config(first=WHOLE, second=WHOLE, encoder=RESNET, hidden=16, dim=12),
    "vicreg": vicreg.Config(first=WHOLE, second=WHOLE, encoder=RESNET, hidden=16, dim=12),
    "byol": byol.Config(first=WHOLE, second=WHOLE, encoder=RESNET, hidden=16, dim=8, momentum=0.5),
    "simsiam": simsiam.Config(view=View(size=SIDE, count=2), encoder=RESNET, hidden=16, dim=8, predictor_hidden=6),
    "simclr": simclr.Config(view=View(size=SIDE, count=2), encoder=EFFICIENTNET, hidden=32, dim=8),
    "swav": swav.Config(
        view=View(size=SIDE, count=2),
        local=View(size=32, count=2),
        encoder=RESNET,
        hidden=16,
        dim=8,
        prototypes=6,
        queue=5,
        queue_epoch=0,
        frozen_epochs=0,
    ),
    "lejepa": lejepa.Config(
        global_view=View(size=SIDE, count=2), local=View(size=32), encoder=RESNET, hidden=16, dim=8, slices=8
    ),
    "dino": dino.Config(
        global_1=WHOLE, global_2=WHOLE, local=View(size=32, count=2), encoder=RESNET, head=HEAD, momentum=0.5
    ),
}


def build(name: str) -> Method:
    torch.manual_seed(0)
    return CONFIGS[name].build()


def batch(name: str, first: int = 0, last: int = ROWS) -> Batch:
    """Rows of one fixed global batch."""
    generator = torch.Generator().manual_seed(1)
    views = [
        ViewBatch(torch.randn(view.count, ROWS, 3, *view.shape, generator=generator)[:, first:last], None)
        for view in CONFIGS[name].views
    ]
    return Batch(views, torch.zeros(last - first), torch.zeros(last - first))


def test_mocov3_has_the_heads_of_the_official_resnet() -> None:
    """Names and shapes of `MoCo_ResNet`: two layers each, the projector's last norm without affine, no predictor's."""
    config = mocov3.Config(encoder=EncoderConfig(model="resnet50"))
    with torch.device("meta"):
        model = config.build()
    shapes = {
        name: {key: list(parameter.shape) for key, parameter in head.named_parameters()}
        for name, head in (("projector", model.projector), ("predictor", model.predictor))
    }
    norm = {"1.weight": [4096], "1.bias": [4096]}
    assert shapes["projector"] == {"0.weight": [4096, 2048], **norm, "3.weight": [256, 4096]}
    assert shapes["predictor"] == {"0.weight": [4096, 256], **norm, "3.weight": [256, 4096]}
    assert [type(layer).__name__ for layer in model.projector] == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    assert [type(layer).__name__ for layer in model.predictor] == ["Linear", "BatchNorm", "ReLU", "Linear"]


def test_each_view_is_a_batch_of_its_own_for_mocov3() -> None:
    """Against the official order: queries, then keys, each view alone."""
    model, data = build("mocov3"), batch("mocov3")
    assert isinstance(model, mocov3.MoCoV3)
    first, second = (view.pixels[0] for view in data.views)
    queries = [model.predictor(model.projector(model.encoder.vit(images))) for images in (first, second)]
    keys = [model.teacher.projector(model.teacher.encoder.vit(images)) for images in (first, second)]
    expected = torch.zeros(())
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        logits = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(k, dim=1).T / 0.2
        expected = expected + 2 * 0.2 * torch.nn.functional.cross_entropy(logits, torch.arange(ROWS))
    torch.testing.assert_close(model(data, START).loss, expected)


def test_dino_has_batch_normalisation_in_its_head_unless_told_otherwise() -> None:
    model = build("dino")
    assert [type(layer).__name__ for layer in model.head.mlp[:3]] == ["Linear", "BatchNorm", "GELU"]  # type: ignore[union-attr,index]
    plain = CONFIGS["dino"].model_copy(update={"head_norm": False}).build()
    assert [type(layer).__name__ for layer in plain.head.mlp[:2]] == ["Linear", "GELU"]


@pytest.mark.parametrize(
    ("name", "parts", "others"),
    [
        ("simclr", ["projector"], ["negatives of the batch"]),
        ("mocov3", ["projector", "predictor"], ["negatives of the batch"]),
        ("dino", ["head"], []),
        ("swav", ["projector"], ["Sinkhorn-Knopp"]),
        ("lejepa", ["projector"], ["SIGReg's means over the batch"]),
        ("byol", ["projector", "predictor"], []),
        ("simsiam", ["projector", "predictor"], []),
        ("barlowtwins", ["projector"], ["correlations over the batch"]),
        ("vicreg", ["projector"], ["variances and covariances over the batch"]),
    ],
)
def test_micro_batches_would_change_the_statistics(name: str, parts: list[str], others: list[str]) -> None:
    norms = [f"batch normalisation of {part}" for part in (CONFIGS[name].encoder.model, *parts)]
    assert build(name).batch_statistics() == (*others, *norms)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    model = build(name)
    model(batch(name), START).loss.backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("config", "view", "name"),
    [
        (mae.Config, {"view": MASKED}, "MAE"),
        (simmim.Config, {"view": MASKED}, "SimMIM"),
        (msn.Config, {"target": WHOLE, "anchor": MASKED}, "MSN"),
        (ibot.Config, {key: View(size=SIDE, mask=BlockMask()) for key in ("global_1", "global_2")}, "iBOT"),
    ],
)
def test_masking_methods_refuse_a_cnn(config: Any, view: dict[str, View], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} hides patches, which the network 'resnet50' cannot"):
        config(**view, encoder=EncoderConfig(model="resnet50"))


def one_step(name: str) -> dict[str, Tensor]:
    """Gradients and updated state of a step on the global batch, of which each process has a part."""
    share = ROWS // world()
    # in float64: a norm takes the gradient of what it removes back to zero, and rounding would be compared
    model = build(name).double()
    data = batch(name, rank() * share, (rank() + 1) * share)
    data = data._replace(views=[view._replace(pixels=view.pixels.double()) for view in data.views])
    output = model(data, START)
    output.loss.backward()
    found = {"loss": mean_over_processes(output.loss)}
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {key}"] = mean_over_processes(parameter.grad)
            parameter.data.sub_(0.1 * found[f"gradient of {key}"])
    model.after_step(START)
    return found | model.state_dict()


def all_steps(_rank: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    return {name: one_step(name) for name in names}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return on_processes(partial(all_steps, names=list(CONFIGS)))


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_are_one(two: list[dict[str, Any]], name: str) -> None:
    one = one_step(name)
    assert any(key.endswith("bn1.running_var") for key in one)
    for found in two:
        assert found[name].keys() == one.keys()
        for key, tensor in one.items():
            scale = tensor.abs().max().item() if key.startswith("gradient") else 1.0
            torch.testing.assert_close(
                found[name][key],
                tensor,
                rtol=1e-5,
                atol=1e-5 * scale + 1e-9,
                msg=lambda text, key=key: f"{key}: {text}",
            )


# ---------------------------------------------------------------- whole runs

RECIPE = str(ROOT / "recipes" / "demo" / "mocov3_resnet_shapes.yaml")
TINY = ["data.train_size=42", "data.val_size=20", "train.batch_size=8", "train.epochs=2", "optim.warmup_epochs=0.5"]
QUIET = ["run.workers=0", "run.log_every=1", "run.checkpoint_every=3"]
LAST = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("cnn") / "whole"
    assert launch("pretrain", [RECIPE, f"run.output={output}", *TINY, *QUIET]) == [0]
    return output


def test_resumes_exactly(whole: Path, tmp_path: Path) -> None:
    arguments = [RECIPE, f"run.output={tmp_path}", *TINY, *QUIET, *UNSHOWN]
    assert launch("pretrain", arguments, kill={"step": 5}) == [-9]
    assert launch("pretrain", arguments) == [0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(whole, LAST)


def test_two_processes_learn_what_one_does(whole: Path, tmp_path: Path) -> None:
    arguments = [RECIPE, f"run.output={tmp_path}", *TINY, *QUIET, *UNSHOWN]
    assert launch("pretrain", arguments, world=2) == [0, 0]
    one, two = ([line["loss"] for line in metrics(output) if "loss" in line] for output in (whole, tmp_path))
    assert two == pytest.approx(one, rel=1e-5)


def test_finetunes_from_its_export(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        TINY_FINETUNE.replace("mixing: {mixup: 0.5, cutmix: 0.5}", "pool: mean"), encoding="utf-8"
    )
    how = ["task.strategy={name: differential, layer_decay: 0.5}", "task.view.size=32", "data.size=32"]
    arguments = [str(tmp_path / "tiny.yaml"), f"encoder={whole / 'export'}", f"run.output={tmp_path / 'run'}", *how]
    assert launch("finetune", arguments) == [0]
    alone = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True)
    assert alone(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
