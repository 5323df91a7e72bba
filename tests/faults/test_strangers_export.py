"""An export folder from a stranger: whatever its config.json says, it is an export or a `UserError`, and nothing else
happens: no network, no file outside the folder, no memory."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, timm_config, write_export
from unlabeled.backbone.folder_config import ModelArgs, read_config
from unlabeled.backbone.weights import load_classifier, load_encoder, preprocessing_of
from unlabeled.errors import UserError
from unlabeled.serve.deploy import deploy, network

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": [8, 8], "patch_size": 4, "in_chans": 3, "embed_dim": 8, "depth": 1, "num_heads": 2}
ELSEWHERE = "http://127.0.0.1:9/weights.pth"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    model = build_encoder(NAME, TINY).vit
    write_export(tmp_path / "export", model.state_dict(), timm_config(NAME, TINY, 8, IMAGENET), "# card\n")
    return tmp_path / "export"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that were looked up or connected to, pickles that were read: there must be none."""
    found: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        found.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    return found


def change(export: Path, where: str, value: Any) -> None:
    """Set a dotted field of the config."""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    *sections, name = where.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[name] = value
    (export / "config.json").write_text(json.dumps(config), encoding="utf-8")


def every_way(export: Path) -> list[Callable[[], Any]]:
    """All that reads an export."""
    return [
        lambda: load_encoder(export),
        lambda: load_encoder(f"scratch:{export}"),
        lambda: load_classifier(export),
        lambda: network(export, read_config(export)),
        lambda: deploy(export, export.parent / "program", "torch"),
    ]


REACHING = [
    *(
        (f"model_args.{name}", value)
        for name, value in {
            "pretrained": True,
            "pretrained_cfg": {"url": ELSEWHERE, "hf_hub_id": "someone/something", "source": "hf-hub"},
            "pretrained_cfg_overlay": {"file": "/etc/passwd", "custom_load": True},
            "pretrained_strict": False,
            "checkpoint_path": "/etc/passwd",
            "cache_dir": "/tmp/elsewhere",
            "kwargs": {"pretrained": True},
            "norm_layer": "os.system",
            "act_layer": "torch.hub.load",
            "embed_layer": "x",
            "block_fn": "x",
            "device": "cuda",
            "dtype": "float64",
            "features_only": True,
            "scriptable": True,
            "num_classes": 10**9,
            "drop_path_rate": 0.5,
            "pretrained ": True,
            "\x1b[2J": 1,
        }.items()
    ),
    *(
        ("architecture", name)
        for name in (
            f"hf-hub:timm/{NAME}.augreg_in21k",
            f"hf_hub:timm/{NAME}",
            f"HF-HUB:timm/{NAME}",
            "local-dir:/etc",
            "local-dir:../..",
            f"timm/{NAME}",
            f"./{NAME}",
            f"{NAME}./../x",
            f"{NAME}.hf-hub:x",
            f"{NAME}\n",
            f"{NAME} ",
            "",
            "no_such_model",
            "\x1b[31mred",
            NAME.upper(),
        )
    ),
]


@pytest.mark.parametrize(("where", "value"), REACHING)
def test_nothing_outside_the_folder_is_reached(export: Path, asked: list[Any], where: str, value: Any) -> None:
    change(export, where, value)
    for read in every_way(export):
        with pytest.raises(UserError) as error:
            read()
        assert "config.json" in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000
    assert not asked


def test_addresses_of_weights_that_timm_would_follow_are_not(export: Path, asked: list[Any]) -> None:
    before = load_encoder(export).vit.state_dict()
    for name, value in {
        "url": ELSEWHERE,
        "hf_hub_id": "someone/something",
        "hf_hub_filename": "x.pth",
        "file": "/etc/passwd",
        "source": "hf-hub",
        "custom_load": True,
        "state_dict": {"a": 1},
        "tag": "augreg_in21k",
        "license": "<script>",
    }.items():
        change(export, f"pretrained_cfg.{name}", value)
        assert all(torch.equal(t, before[n]) for n, t in load_encoder(export).vit.state_dict().items())
        assert network(export, read_config(export)) is not None and preprocessing_of(export) is not None
    assert not asked


TOO_MUCH: list[tuple[str, Any]] = [
    *(
        (f"model_args.{name}", value)
        for name, value in {
            "depth": 20_000,
            "embed_dim": 1 << 20,
            "num_heads": 1 << 30,
            "patch_size": 0,
            "img_size": [1 << 20, 1 << 20],
            "reg_tokens": 1 << 40,
            "mlp_ratio": 1e9,
            "in_chans": 10**6,
            "init_values": float("nan"),
            "use_rel_pos_bias": "yes",
            "global_pool": "../../x",
            "qkv_bias": 5,
        }.items()
    ),
    *(
        (f"model_args.{name}", value)
        for name in ("depth", "embed_dim", "img_size")
        for value in (True, "7", [], {}, -1)
    ),
    ("num_classes", 10**12),
    ("num_classes", -1),
    ("num_classes", "0"),
    ("label_names", ["cat"]),
    ("label_names", {"cat": 0}),
    ("label_names", [7]),
    ("value_range", [1, 0]),
    ("value_range", [0, float("inf")]),
    ("linear_head", {"pool": "cls", "blocks": 10**9}),
    ("linear_head", {"pool": "os.system", "blocks": 1}),
    ("pretrained_cfg.input_size", [3, 1 << 40, 8]),
    ("pretrained_cfg.input_size", [4, 8, 8]),
    ("pretrained_cfg.input_size", [3]),
    ("pretrained_cfg.mean", [0.5] * 1000),
    ("pretrained_cfg.mean", [float("nan")] * 3),
    ("pretrained_cfg.mean", "0.5"),
    ("pretrained_cfg.std", [0.0, 1.0, 1.0]),
    ("pretrained_cfg.std", [1.0]),
    ("pretrained_cfg.crop_pct", 0),
    ("pretrained_cfg.crop_pct", None),
    ("pretrained_cfg.crop_pct", 1e-6),
    ("model_args.img_size", None),
    ("model_args.img_size", [2, 2]),
    ("pretrained_cfg.interpolation", "../bicubic"),
    ("model_args", [1, 2]),
    ("architecture", ["vit"]),
]


@pytest.mark.parametrize(("where", "value"), TOO_MUCH)
def test_sizes_and_kinds_beyond_reason_cost_nothing(export: Path, where: str, value: Any) -> None:
    change(export, where, value)
    began, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in every_way(export):
        with pytest.raises(UserError, match=r"config\.json"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 50_000  # kB
    assert time.process_time() - began < 8


def test_what_a_recipe_may_ask_for_can_be_read_back() -> None:
    names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    for ours, theirs in {**names, "registers": "reg_tokens", "mlp_ratio": "mlp_ratio", "channels": "in_chans"}.items():
        shapes = (model.model_json_schema()["properties"] for model in (EncoderConfig, ModelArgs))
        bounds = [
            next(kind["maximum"] for kind in (shape, *shape.get("anyOf", ())) if "maximum" in kind)
            for shape in (properties[name] for properties, name in zip(shapes, (ours, theirs), strict=True))
        ]
        assert bounds[0] == bounds[1], ours


def test_a_network_larger_than_its_weights_is_never_built(export: Path) -> None:
    """Each size within bounds, together 39 billion weights."""
    for name, value in {"depth": 12, "embed_dim": 16384}.items():
        change(export, f"model_args.{name}", value)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in every_way(export)[:2]:
        with pytest.raises(UserError, match=r"asks for a network of [\d,]+ weights, and its model\.safetensors has"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 200_000


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": [16384, 16384]}),
        ("resnet18", {"depth": 2}),
        ("vit_relpos_small_patch16_224", {"img_size": [16384, 16384]}),
        ("eva02_tiny_patch14_224", {"img_size": [16384, 16384]}),
    ],
)
def test_networks_whose_tables_are_larger_than_their_weights(
    export: Path, architecture: str, arguments: dict[str, Any]
) -> None:
    change(export, "architecture", architecture)
    change(export, "model_args", {"in_chans": 3, **arguments})
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in every_way(export)[:2]:
        with pytest.raises(UserError, match=r"asks for a network of|do not shape the network"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 200_000


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"architecture": ' * 100_000, "1" * 10_000, "null", "5", '"x"', "\ufeff{}", "{} {}", "<html>"],
)
def test_json_that_is_no_config(export: Path, text: str) -> None:
    (export / "config.json").write_text(text, encoding="utf-8")
    for read in every_way(export):
        with pytest.raises(UserError, match=r"config\.json"):
            read()


def test_a_config_without_end(export: Path) -> None:
    with (export / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"cannot be read: more than 16,777,216 bytes"):
        load_encoder(export)


def test_a_classifier_whose_weights_do_not_fit(tmp_path: Path) -> None:
    import timm

    arguments = {**TINY, "global_pool": "avg", "fc_norm": True}
    weights = timm.create_model(NAME, num_classes=2, **arguments).state_dict()
    config = timm_config(NAME, arguments, 8, IMAGENET, 2, ("a", "b"))
    write_export(tmp_path / "export", weights, config, "")
    assert load_classifier(tmp_path / "export")[2].keys() == weights.keys()
    (tmp_path / "export" / "MANIFEST.json").unlink()
    for wrong in (
        {"stranger": torch.zeros(1)},
        {"head.weight": torch.zeros(3, 8)},
        {"norm.weight": torch.zeros(8, dtype=torch.int64)},
    ):
        safetensors.torch.save_file({**weights, **wrong}, tmp_path / "export" / "model.safetensors")
        with pytest.raises(UserError, match="do not match"):
            load_classifier(tmp_path / "export")
