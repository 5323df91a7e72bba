"""SparK against numbers of the official code (keyu-tian/SparK). Depths, widths and options come from the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from parity.golden import Golden, assert_close, read_json
from parity.vit import START, names_by_decay
from torch import Tensor

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.importers.spark import OFFICIAL, sorted_out, timm_names
from unlabeled.backbone.masked import Visible
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.map_decoders.unet import Config as UNet
from unlabeled.pretrain.method import Method, Progress
from unlabeled.pretrain.methods.spark import SparK
from unlabeled.train.optim import clip_gradients, set_rates
from unlabeled.train.optimizers.lamb import LAMB
from unlabeled.train.optimizers.lamb import Config as Lamb

FORWARD, BACKWARD = 3e-5, 1e-4  # batch normalisation over few cells: rounding alone is 2.2e-5
ENCODER, DECODER = "sparse_encoder.sp_cnn.", "dense_decoder.dec."


class Case(NamedTuple):
    golden: Golden
    names: dict[str, str]  # our name of each official one
    model: SparK  # after a step
    batch: Batch
    loss: Tensor
    after: dict[str, Tensor]  # the state after the forward pass


@pytest.fixture(scope="module", params=["resnet", "convnext"])
def case(folder: Path, request: pytest.FixtureRequest) -> Case:
    """One network of the set, with the official weights, after forward and backward."""
    golden = Golden(folder / f"model_{request.param}.safetensors")
    weights = dict(golden.under("sd"))
    model, names = built(weights, golden.shape("in/images")[-2:])
    encoder, decoder = as_ours(weights)
    model.load_state_dict({**model.state_dict(), **encoder, **decoder})
    batch = batch_of(golden)
    loss = model.train()(batch, START).loss
    loss.backward()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Case(golden, names, model, batch, loss, after)


def built(weights: dict[str, Tensor], size: tuple[int, ...]) -> tuple[SparK, dict[str, str]]:
    """Our model of official weights, with random ones, and our names of theirs."""
    shapes = {name.removeprefix(ENCODER): tensor.shape for name, tensor in weights.items()}
    model, arguments = (convnext if f"{OFFICIAL}0.0.weight" in shapes else resnet)(shapes)
    encoder = build_encoder(model, {"img_size": list(size), **arguments})
    width = shapes[f"{DECODER}0.up_sample.weight"][0]
    method = SparK(encoder, UNet(width=width))
    marked = {name: torch.full_like(tensor, number) for number, (name, tensor) in enumerate(weights.items())}
    official = dict(enumerate(weights))
    ours = {official[int(t.flatten()[0])]: name for part in as_ours(marked) for name, t in part.items() if t.numel()}
    assert ours.keys() | {name for name in weights if name in ("imn_m", "imn_s", "norm_black")} == weights.keys()
    return method, ours


def stages(shapes: Any, pattern: str) -> list[int]:
    """How many blocks each stage has; names are `pattern` with the numbers of the stage and the block."""
    counts = []
    while any(name.startswith(pattern.format(len(counts), 0)) for name in shapes):
        stage = len(counts)
        counts.append(next(n for n in range(256) if not any(k.startswith(pattern.format(stage, n)) for k in shapes)))
    return counts


def resnet(shapes: Any) -> tuple[str, dict[str, Any]]:
    shifted = {
        name.replace(f"layer{n + 1}.", f"stage{n}."): shape
        for name, shape in shapes.items()
        for n in range(4)
        if name.startswith(f"layer{n + 1}.")
    }
    layers = stages(shifted, "stage{}.{}.")
    channels = [shifted[f"stage{n}.0.conv1.weight"][0] for n in range(len(layers))]
    bottleneck = "stage0.0.conv3.weight" in shifted
    told = {"in_chans": shapes["conv1.weight"][1], "layers": layers, "channels": channels}
    return "resnet50" if bottleneck else "resnet18", told


def convnext(shapes: Any) -> tuple[str, dict[str, Any]]:
    depths = stages(shapes, "stages.{}.{}.")
    dims = [shapes[f"stages.{n}.0.dwconv.weight"][0] for n in range(len(depths))]
    return "convnext_tiny", {"in_chans": shapes[f"{OFFICIAL}0.0.weight"][1], "depths": depths, "dims": dims}


def as_ours(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(encoder, decoder) under our names, by the importer's rules."""
    encoder, decoder = sorted_out(weights)
    shapes = {name: tensor.shape for name, tensor in encoder.items()}
    if f"{OFFICIAL}0.0.weight" in encoder:
        given = encoder.keys()
        model, arguments = convnext(shapes)
        encoder = timm_names(encoder, model, arguments)
        encoder = {name: t for name, t in encoder.items() if not name.startswith("head.") or "norm.weight" in given}
    return {f"encoder.vit.{name}": tensor for name, tensor in encoder.items()}, decoder


def batch_of(golden: Golden) -> Batch:
    images, active = golden["in/images"], golden["in/active"].flatten(1)
    order = active.int().argsort(dim=1, descending=True, stable=True)
    count = int(active[0].sum())
    mask = PatchMask(~active, order[:, :count], order[:, count:]).map(lambda tensor: tensor.unsqueeze(0))
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def test_the_mask_keeps_as_many_cells_as_ours(case: Case) -> None:
    active = case.golden["in/active"].flatten(1)
    mask = RandomMask(
        ratio=case.golden.config.get("mask_ratio", case.golden.config.get("mask")), rounding="round_visible"
    )
    assert (~active).sum(1).unique().tolist() == [mask.hidden(active.shape[1])]
    assert RandomMask(ratio=0.6, rounding="round_visible").hidden(49) == 29


@torch.no_grad()
def test_maps_and_pixels(case: Case) -> None:
    golden, model = case.golden, case.model
    images, mask = case.batch.views[0].flat()
    assert mask is not None
    visible = Visible.of(mask, images, model.asked)
    maps = model.encode(images, visible)
    for number in golden.found(r"out/feature(\d+)"):
        official = golden[f"out/feature{number}"]  # of the first channels
        mine = visible.zeroed(maps[len(maps) - 1 - int(number)])[:, : official.shape[1]]
        assert_close(mine, official, FORWARD, f"feature {number}")
    for number in golden.found(r"out/densified(\d+)"):
        official = golden[f"out/densified{number}"]
        mine = model.decoder.densify[int(number)](maps[int(number)], visible)[:, : official.shape[1]]  # type: ignore
        assert_close(mine, official, FORWARD, f"densified {number}")
    official = golden["out/reconstruction_of_first"]
    assert_close(model.decoder(maps, visible)[: len(official)], official, FORWARD, "reconstruction")


def test_loss(case: Case) -> None:
    assert_close(case.loss, case.golden["out/loss"], FORWARD, "loss")


def test_gradients(case: Case) -> None:
    noise, golden = case.golden.config.get("noise_only", []), case.golden
    gradients = {name: p.grad for name, p in case.model.named_parameters() if p.requires_grad}
    for name, official in golden.some("grad").items():
        mine = gradients[case.names[name]]
        assert mine is not None, name
        if name not in noise:
            assert_close(mine.reshape(official.shape), official, BACKWARD, f"gradient of {name}")
    names = golden.config["grad_norm_names"]
    assert {case.names[name] for name in names} == gradients.keys()
    norms = torch.stack([gradients[case.names[name]].double().norm() for name in names])  # type: ignore[union-attr]
    kept = torch.tensor([name not in noise for name in names])
    assert_close(norms[kept], golden["out/grad_norms"][kept], BACKWARD, "norms of the gradients")


def test_running_statistics(case: Case) -> None:
    for name, official in case.golden.some("after").items():
        assert_close(case.after[case.names[name]], official, FORWARD, f"{name} after a step")


def test_parameter_groups(folder: Path, case: Case) -> None:
    """The file is of one of the networks of the set."""
    official = {
        name: group["weight_decay_scale"]
        for group in read_json(folder / "param_groups.json").values()
        for name in group["names"]
    }
    of_a_convnext, is_one = (any(OFFICIAL in name for name in names) for names in (official, case.names))
    if of_a_convnext == is_one:
        decayed = names_by_decay(case.model)
        assert {True, False} == decayed.keys() and set(official.values()) == {0.0, 1.0}
        for scale in (0.0, 1.0):
            assert decayed[scale > 0] == {case.names[name] for name, found in official.items() if found == scale}


def test_lamb(folder: Path) -> None:
    golden = Golden(folder / "lamb.safetensors")
    c = golden.config
    count = len(golden.found(r"in/p(\d+)"))
    parameters = [torch.nn.Parameter(golden[f"in/p{n}"]) for n in range(count)]
    decay = c["weight_decay"]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(parameters, decay, strict=True)]
    lamb = LAMB(groups, lr=c["lr"], betas=tuple(c["betas"]), eps=c.get("eps", 1e-6))
    method: Method = torch.nn.ParameterList(parameters)  # type: ignore[assignment]
    for step in sorted(golden.found(r"in/g\d+_(\d+)"), key=int):
        for number, parameter in enumerate(parameters):
            parameter.grad = golden[f"in/g{number}_{step}"]
        clip_gradients(method, c["max_grad_norm"], "global")
        lamb.step()
        for number, parameter in enumerate(parameters):
            official = golden[f"out/p{number}_after{int(step) + 1}"]
            assert_close(parameter, official, 1e-5, f"p{number} after step {step}")


def test_schedules(folder: Path) -> None:
    """Official tables end on their last step, ours one after it."""
    golden = Golden(folder / "schedules.safetensors")
    c, official = golden.config, golden["out/lr_wd_wdNoDecay"]
    peak, last = c["peak"], len(official) - 1
    assert len(official) == c["mx"]
    config = Lamb(
        warmup_epochs=c["wp"],
        warmup_lr=0.005 * peak,
        min_lr=0.001 * peak,
        weight_decay=c["wd"],
        weight_decay_end=c["wde"],
    )
    parameter = torch.nn.Parameter(torch.zeros(2))
    kinds = [{"params": [parameter], "decays": True, "lr_scale": 1.0}, {"params": [], "decays": False, "lr_scale": 1.0}]
    optimizer = torch.optim.SGD(kinds, lr=0.0)
    for step, row in enumerate(official):
        set_rates(optimizer, config, peak, Progress(step, last, float(step), float(last)))
        kept, undecayed = optimizer.param_groups
        mine = torch.tensor([kept["lr"], kept["weight_decay"], undecayed["weight_decay"]], dtype=torch.float64)
        assert_close(mine, row, 1e-5, f"step {step}")
