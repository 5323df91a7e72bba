"""Full official checkpoints of unusual shapes: the printed recipe fields build the network that their heads fit.

Networks are built here from a recipe, and their state is laid out under official names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import load_method
from einops import rearrange
from ruamel.yaml import YAML
from torch import Tensor, nn

from unlabeled.__main__ import main
from unlabeled.backbone.folder_config import read_config
from unlabeled.backbone.importers import ijepa as ijepa_importer
from unlabeled.backbone.importers import mae as mae_importer
from unlabeled.backbone.importing import read
from unlabeled.backbone.norms import eps_of
from unlabeled.errors import UserError
from unlabeled.pretrain.method import PretrainMethod
from unlabeled.pretrain.methods import dino, ibot, ijepa, mae, mocov3, simmim

Tensors = dict[str, Tensor]
METHODS: dict[str, Any] = {
    "mae": mae,
    "mocov3": mocov3,
    "dino": dino,
    "ibot": ibot,
    "simmim": simmim,
    "ijepa": ijepa,
}
MASK = {"size": 16, "mask": {"name": "random", "unit": 8}}
VIEWS: dict[str, dict[str, Any]] = {
    "mae": {"view": MASK},
    "simmim": {"view": MASK},
    "ijepa": {"view": MASK},
    "mocov3": {"first": {"size": 16}, "second": {"size": 16}},
    "dino": {"global_1": {"size": 16}, "global_2": {"size": 16}, "local": None},
    "ibot": {"global_1": MASK, "global_2": MASK, "local": None},
}
WIDE: dict[str, Any] = {"model": "vit_base_patch16_224", "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
BEIT = {**WIDE, "model": "beit_base_patch16_224"}
GAP = {**WIDE, "model": "vit_base_patch16_gap_224"}
LEARNED = {"positions": "learned", "interpolation": "scale"}
SMALL = {"encoder": WIDE, "decoder": {"name": "self", "width": 16, "depth": 1, "heads": 2}}
HEAD = {"prototypes": 20, "hidden": 24, "bottleneck": 12, "layers": 3}

# fields of a recipe beside its views, by method
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mae", {"encoder": {"mlp_ratio": 3.0}, "decoder": {"name": "self", "width": 24, "depth": 1, "heads": 8}}),
    (
        "mae",
        {
            "encoder": {"mlp_ratio": 2.3, "qkv_bias": False, "channels": 2},
            "decoder": {"name": "self", "width": 16, "depth": 3, "heads": 16, "mlp_ratio": 2.7},
        },
    ),
    ("mocov3", {"encoder": {"mlp_ratio": 3.0}, "hidden": 20, "dim": 12}),
    ("mocov3", {"encoder": {"qkv_bias": False}, "hidden": 20, "dim": 12, "projector_layers": 4, "predictor_layers": 1}),
    ("mocov3", {"encoder": {"depth": 1}, "hidden": 20, "dim": 12, "projector_layers": 1, "predictor_layers": 3}),
    ("dino", {"encoder": {"mlp_ratio": 3.0}, "head": {**HEAD, "layers": 4, "freeze_gain": True}}),
    ("dino", {"encoder": {"qkv_bias": False}, "head": {**HEAD, "layers": 1}}),
    ("dino", {"encoder": {}, "head": {**HEAD, "layers": 2}, "head_norm": True}),
    ("ibot", {"encoder": {"mlp_ratio": 3.0}, "head": HEAD}),
    ("ibot", {"encoder": {}, "head": {**HEAD, "bottleneck": 0, "layers": 2}}),
    ("ibot", {"encoder": {}, "head": {**HEAD, "bottleneck": 0, "layers": 3}, "patch_prototypes": 14}),
    ("ibot", {"encoder": {}, "head": {**HEAD, "layers": 1}, "patch_prototypes": 14}),
    ("ibot", {"encoder": {}, "head": HEAD, "patch_prototypes": 20, "teacher_shares": True}),
    ("ijepa", {"encoder": {"mlp_ratio": 3.0}, "predictor": {"width": 12, "depth": 1}}),
    (
        "ijepa",
        {
            "encoder": {"qkv_bias": False, "channels": 2},
            "predictor": {"width": 24, "depth": 2, "mlp_ratio": 2.7},
        },
    ),
    ("simmim", {"encoder": {"mlp_ratio": 3.0, "positions": "relative"}}),
    ("simmim", {"encoder": {"positions": "relative_learned", "relative_tables": "both", "qkv_bias": False}}),
    ("simmim", {"encoder": {"positions": "learned", "init_values": 0.0, "channels": 1}}),
]


def build(name: str, fields: dict[str, Any]) -> PretrainMethod:
    """A method with nothing at zero or one, but gains that are held."""
    method = METHODS[name].Config.model_validate({**VIEWS[name], **fields}).build()
    for part in (*method.named_parameters(), *method.named_buffers()):
        if part[1].is_floating_point() and not (part[0].endswith("weight_g") and fields["head"].get("freeze_gain")):
            nn.init.normal_(part[1], std=0.3)
    return method


def moved(state: Tensors, *places: tuple[str, str]) -> Tensors:
    """Tensors below each of our prefixes, under the official one instead."""
    return {
        f"{theirs}{n.removeprefix(ours)}": t for ours, theirs in places for n, t in state.items() if n.startswith(ours)
    }


def official_mae(state: Tensors, fields: dict[str, Any]) -> dict[str, Any]:
    rules = [(rule.ours, rule.official) for rule in mae_importer.RULES if rule.ours]
    return {"model": moved(state, ("encoder.vit.", ""), *rules)}


def official_mocov3(state: Tensors, fields: dict[str, Any]) -> dict[str, Any]:
    places = [("encoder.vit.", "base_encoder."), ("projector.", "base_encoder.head."), ("predictor.", "predictor.")]
    places += [("teacher.encoder.vit.", "momentum_encoder."), ("teacher.projector.", "momentum_encoder.head.")]
    return {"state_dict": moved(state, *((ours, f"module.{theirs}") for ours, theirs in places))}


def official_head(state: Tensors, prefix: str, fields: dict[str, Any], patches: bool) -> Tensors:
    """One linear layer is no sequence, without a bottleneck the last layer is the MLP's, shared ones are double."""
    head, last = moved(state, (prefix, "")), ("last_layer.", "last_layer2.")
    bottleneck, layers = fields["head"]["bottleneck"], fields["head"]["layers"]
    if not bottleneck:
        last = (f"mlp.{2 * (layers - 1)}." if layers > 1 else "mlp.", "mlp2.")
    single = layers == 1 and bottleneck
    out = {}
    for name, tensor in head.items():
        if name.startswith("last_layer."):
            out[last[0] + name.removeprefix("last_layer.")] = tensor
            if patches and not any(n.startswith("patch_layer.") for n in head):
                out[last[1] + name.removeprefix("last_layer.")] = tensor.clone()
        elif name.startswith("patch_layer."):
            out[last[1] + name.removeprefix("patch_layer.")] = tensor
        else:
            out[name.replace("mlp.0.", "mlp.") if single else name] = tensor
    return out


def official_dino(state: Tensors, fields: dict[str, Any], patches: bool = False) -> dict[str, Any]:
    networks = {}
    for key, encoder, head, wrapper in (
        ("student", "encoder", "head", "module."),
        ("teacher", "teacher", "teacher_head", ""),
    ):
        backbone = moved(state, (f"{encoder}.vit.", f"{wrapper}backbone."))
        own = official_head(state, f"{head}.", fields, patches)
        networks[key] = {**backbone, **{f"{wrapper}head.{n}": t for n, t in own.items()}}
    return {**networks, "dino_loss": {"center": state["centre.value"][None]}}


def official_ibot(state: Tensors, fields: dict[str, Any]) -> dict[str, Any]:
    checkpoint = official_dino(state, fields, patches=True)
    checkpoint["student"]["module.backbone.masked_embed"] = state["mask_token"]
    centres = {"center": checkpoint.pop("dino_loss")["center"], "center2": state["patch_centre.value"][None, None]}
    return {**checkpoint, "ibot_loss": centres}


def official_simmim(state: Tensors, fields: dict[str, Any]) -> dict[str, Any]:
    weights = moved(state, ("encoder.vit.", "encoder."), ("mask_token", "encoder.mask_token"))
    for kind in ("weight", "bias"):
        channels = fields["encoder"].get("channels", 3)
        rows = rearrange(state[f"decoder.head.{kind}"], "(p c) ... -> (c p) ...", c=channels)
        weights[f"decoder.0.{kind}"] = rows[..., None, None] if kind == "weight" else rows
    return {"model": weights}


def official_ijepa(state: Tensors, fields: dict[str, Any]) -> dict[str, Any]:
    rules = [(rule.ours, f"module.{rule.official}") for rule in ijepa_importer.PREDICTOR]
    return {
        "encoder": moved(state, ("encoder.vit.", "module.")),
        "predictor": moved(state, *rules),
        "target_encoder": moved(state, ("teacher.vit.", "module.")),
        "epoch": 300,
        "lr": 1e-3,
    }


OFFICIAL: dict[str, Callable[[Tensors, dict[str, Any]], dict[str, Any]]] = {
    "mae": official_mae,
    "mocov3": official_mocov3,
    "dino": official_dino,
    "ibot": official_ibot,
    "simmim": official_simmim,
    "ijepa": official_ijepa,
}


@pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_printed_fields_go_on_from_the_heads(
    name: str, fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {**{"simmim": BEIT, "ijepa": GAP}.get(name, WIDE)}
    usual |= {"mocov3": {"positions": "sincos_rows"}, "dino": LEARNED, "ibot": LEARNED}.get(name, {})
    fields = {**fields, "encoder": {**usual, **fields["encoder"]}}
    method = build(name, fields)
    state, file, out = dict(method.state_dict()), tmp_path / "official.pth", tmp_path / "out"
    torch.save(OFFICIAL[name](state, fields), file)
    assert main(["import", name, str(file), str(out), "--heads", "3", "--norm-eps", "1e-5"]) == 0
    printed = capsys.readouterr().out.partition("with these fields:\n")[2]
    assert printed in (out / "README.md").read_text()

    section = YAML(typ="safe").load(printed)["method"]
    assert section.pop("name") == name
    if "decoder" in section:  # no weight shows its attention heads
        section["decoder"]["heads"] = fields["decoder"]["heads"]
    again = METHODS[name].Config.model_validate({**VIEWS[name], **section}).build()
    load_method(again, out)
    found = again.state_dict()
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor), key
    assert eps_of(again) == {1e-5}
    gains = [p.requires_grad for n, p in again.named_parameters() if n == "head.last_layer.weight_g"]
    assert gains in ([], [not fields.get("head", {}).get("freeze_gain", False)])


def test_eps_is_kept_in_the_export_and_said(tmp_path: Path) -> None:
    """Of the official number nothing is said."""
    file = tmp_path / "official.pth"
    torch.save(official_mae(dict(build("mae", SMALL).state_dict()), SMALL), file)
    for eps, kept in (("1e-6", None), ("1e-4", 1e-4)):
        assert main(["import", "mae", str(file), str(tmp_path / eps), "--heads", "3", "--norm-eps", eps]) == 0
        assert read_config(tmp_path / eps).get("norm_eps") == kept
        assert ("module.eps" in (tmp_path / eps / "README.md").read_text()) == (kept is not None)


@pytest.mark.parametrize(("eps", "text"), [(0.0, "--norm-eps 0: expected above 0"), (float("nan"), "--norm-eps nan")])
def test_impossible_eps_is_refused(eps: float, text: str, tmp_path: Path) -> None:
    torch.save(official_mae(dict(build("mae", SMALL).state_dict()), SMALL), tmp_path / "official.pth")
    with pytest.raises(UserError, match=text):
        read("mae", tmp_path / "official.pth", heads=3, norm_eps=eps)


def test_a_resnet_has_no_layer_norms(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"resnet18 has no layer norms\. Leave out --norm-eps"):
        read("dino", tmp_path / "official.pth", norm_eps=1e-5)
