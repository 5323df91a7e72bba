"""How MoCo v3 begins and what it freezes, against a report of the official networks: ranges, not draws."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import read_json
from parity.mocov3 import ours
from parity.vit import encoder_config

from unlabeled.data.view.views import View
from unlabeled.pretrain.methods.mocov3 import Config, MoCoV3

SEQUENCES = ("projector", "predictor")
FROZEN = "frozen_without_stop_grad_conv1_excluding_momentum"
# a key of the report's bounds -> the parameters that they hold for
BOUNDED = {
    "qkv": "attn.qkv.weight",
    "attn_proj": "attn.proj.weight",
    "mlp": "mlp.fc1.weight",
    "patch_proj": "patch_embed.proj.weight",
}


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return read_json(folder / "init_and_requires_grad.json")


def networks(report: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in report.items() if isinstance(entry, dict)}


def config_of(params: dict[str, Any], freeze: bool = True) -> Config:
    """Our settings of the official shapes."""
    shapes = {name: tuple(p["shape"]) for name, p in params.items()}
    encoder = {name.removeprefix("base_encoder."): s for name, s in shapes.items() if name.startswith("base_encoder.")}
    _, cells, _ = encoder["pos_embed"]
    side = round((cells - 1) ** 0.5) * encoder["patch_embed.proj.weight"][-1]
    hidden = encoder["head.0.weight"][0]
    last = max(int(name.split(".")[1]) for name in encoder if re.fullmatch(r"head\.\d+\.weight", name))
    return Config(
        first=View(size=side),
        second=View(size=side),
        encoder=encoder_config(encoder, {}, "vit_small_patch16_224", positions="sincos_rows"),  # type: ignore[arg-type]
        freeze_patches=freeze,
        hidden=hidden,
        dim=encoder[f"head.{last}.weight"][0],
    )


def built(params: dict[str, Any]) -> MoCoV3:
    torch.manual_seed(0)
    return config_of(params).build()


def test_initial_ranges_and_what_is_frozen(report: dict[str, Any]) -> None:
    assert networks(report), "the report is of no network"
    for network, official in networks(report).items():
        model = built(official["params"])
        mine = dict(model.named_parameters())
        for name, p in official["params"].items():
            what = f"{network}: {name}"
            values = mine[ours(name)].double()
            assert list(values.shape) == p["shape"], what
            assert mine[ours(name)].requires_grad == p["requires_grad"], what
            assert_alike(values, p, what)
        for key, end in BOUNDED.items():
            for name in [name for name in official["params"] if name.endswith(end) and key in official["bounds"]]:
                largest = mine[ours(name)].abs().max().item()
                assert largest <= official["bounds"][key] * (1 + 1e-6), f"{network}: {name}"
        theirs = {ours(name) for name in official["frozen"]}
        assert theirs == {name for name, p in mine.items() if not p.requires_grad}, network


def assert_alike(values: torch.Tensor, official: dict[str, Any], what: str) -> None:
    """The same spread, and of uniform draws the same bound, within what chance allows; constants exactly."""
    low, high, deviation = official["min"], official["max"], official["std"]
    if low == high:
        assert (values == low).all(), what
        return
    n = values.numel()
    assert abs(values.std().item() / deviation - 1) <= 6 / math.sqrt(n), what
    if max(-low, high) < 1.75 * deviation and n > 100:  # uniform
        assert values.abs().max().item() <= max(-low, high) * (1 + 20 / n), what
        assert values.abs().max().item() >= max(-low, high) * (1 - 20 / n), what


def test_heads_and_what_is_frozen_without_the_frozen_patches(report: dict[str, Any]) -> None:
    """The report's lists of layers are of the smallest of its networks."""
    params = min((network["params"] for network in networks(report).values()), key=size_of)
    model = config_of(params, freeze=False).build()
    for key in (key for key in SEQUENCES if key in report):
        official = [re.sub(r"(, bias=(True|False))?, track.*", "", line) for line in report[key]]
        assert official == [described(layer) for layer in getattr(model, key)], key
    if FROZEN in report:
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith("teacher.")}
        assert frozen == {ours(name) for name in report[FROZEN]}


def size_of(params: dict[str, Any]) -> int:
    return sum(math.prod(p["shape"]) for p in params.values())


def described(layer: torch.nn.Module) -> str:
    """A layer as torch prints it; batch normalisation by its official class, without what newer torch adds."""
    if not hasattr(layer, "running_mean"):
        return repr(layer)
    affine = layer.weight is not None
    return f"BatchNorm1d({layer.running_mean.numel()}, eps={layer.eps}, momentum={layer.momentum}, affine={affine}"


def test_what_else_the_report_has_is_known(report: dict[str, Any]) -> None:
    notes = {name for name, entry in report.items() if isinstance(entry, str)}
    known = {*networks(report), *SEQUENCES, FROZEN, *notes}
    assert report.keys() <= known, f"compared by nobody: {sorted(report.keys() - known)}"
    for name, entry in networks(report).items():
        assert entry.keys() <= {"params", "bounds", "frozen", "note"}, name
        assert entry["bounds"].keys() <= {*BOUNDED, "projector_predictor"}, name
