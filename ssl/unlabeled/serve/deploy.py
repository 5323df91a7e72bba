"""Exports as programs that run without this package and without timm: `torch.export` (.pt2) or ONNX.

OUT/model.pt2 or model.onnx   batches of any size
OUT/model.json                input, preprocessing, names of the classes, difference to the timm model, SHA-256
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlabeled.backbone.build import family_of
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.folder import load_timm, opened, read_weights
from unlabeled.backbone.pooling import FeatureSpec, parts, read
from unlabeled.environment import versions
from unlabeled.errors import UserError, first_line
from unlabeled.files import flush, replacing_folder
from unlabeled.manifest import sha256_of

TOLERANCE = 1e-4
ONE_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB
BATCHES = (1, 3)
Format = Literal["torch", "onnx"]
Pixels = Literal["normalised", "unit", "uint8"]
Model = Callable[[Tensor], Tensor]


def deploy(export: Path, out: Path, format: Format, pixels: Pixels = "normalised") -> float:
    """Write an export as a program.

    Args:
        export: of a classifier or a sweep (logits come out), or of an encoder (features); an address of a network
            outside timm.
        out: a folder that is not there yet, or empty.
        format: `torch` or `onnx`.
        pixels: the input, [B, C, H, W].

    Returns:
        The largest absolute difference to the timm model, on random images.

    Raises:
        UserError: it is no export, the format cannot be had, or the program differs from the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already. Choose another folder, or remove it.")
    if format == "onnx":
        check_onnx()
    folder, config = opened(export)
    model = Prepared(network(folder, config), config["pretrained_cfg"], pixels).eval()
    try:
        with replacing_folder(out) as temporary:
            return _fill(temporary, model, config, format)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}. Choose another folder.") from error


def _fill(folder: Path, model: Prepared, config: dict[str, Any], format: Format) -> float:
    """Write the program and what is known of it; returns its largest difference to the model."""
    file = folder / ("model.pt2" if format == "torch" else "model.onnx")
    WRITERS[format](model, file)
    worst = difference(model, READERS[format](file))
    sums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    about = {**_about(model, config), "max_abs_difference": worst, "versions": versions(), "sha256": sums}
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    flush(folder)
    return worst


class Prepared(nn.Module):
    """A timm model, which takes normalised images, with a part of its preprocessing; `trained` is its configuration."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, trained: dict[str, Any], pixels: Pixels) -> None:
        super().__init__()
        self.model, self.pixels, self.shape = model, pixels, tuple(trained["input_size"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(trained[name]).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, classes] or features [B, D]."""
        if self.pixels == "normalised":
            return self.model(pixels)
        unit = pixels.float() / 255 if self.pixels == "uint8" else pixels
        return self.model((unit - self.mean) / self.std)

    def random(self, count: int) -> Tensor:
        """Random images as input."""
        generator = torch.Generator().manual_seed(count)
        drawn = torch.rand(count, *self.shape, generator=generator)
        if self.pixels == "uint8":
            return (255 * drawn).to(torch.uint8)
        return drawn if self.pixels == "unit" else (drawn - self.mean) / self.std


@torch.no_grad()
def difference(model: Prepared, other: Model) -> float:
    """The largest absolute difference of the outputs, on batches of two sizes.

    Raises:
        UserError: it is more than TOLERANCE of the largest output.
    """
    worst = 0.0
    for count in BATCHES:
        pixels = model.random(count)
        expected, found = model(pixels), other(pixels)
        gap = (expected - found).abs().max().item()
        limit = TOLERANCE * expected.abs().max().item()
        if not gap <= limit:
            raise UserError(f"what was exported differs from the timm model by {gap:.1e}, expected at most {limit:.1e}")
        worst = max(worst, gap)
    return worst


def check_onnx() -> None:
    """Raise UserError when a package for ONNX is not installed."""
    try:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(module)
    except ImportError as error:
        packages = "onnx onnxruntime onnxscript"
        raise UserError(f"ONNX needs {error.name}, not installed. Run `pip install {packages}`.") from error


def _write_onnx(model: Prepared, file: Path) -> None:
    large = sum(tensor.nbytes for tensor in model.state_dict().values()) > ONE_FILE
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": [_output(model)]}
    torch.onnx.export(_program(model), f=file, **names, dynamo=True, external_data=large, verbose=False)


def _program(model: Prepared) -> torch.export.ExportedProgram:
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of others, about others
        return torch.export.export(model, (model.random(2),), dynamic_shapes=shapes)


def _read_onnx(file: Path) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


WRITERS: dict[Format, Callable[[Prepared, Path], None]] = {
    "torch": lambda model, file: torch.export.save(_program(model), file),
    "onnx": _write_onnx,
}
READERS: dict[Format, Callable[[Path], Model]] = {
    "torch": lambda file: torch.export.load(file).module(),
    "onnx": _read_onnx,
}


def network(export: Path, config: dict[str, Any]) -> nn.Module:
    """The timm model of an export, with the linear head that a sweep may have put beside it.

    Raises:
        UserError: it cannot be loaded.
    """
    model, family = load_timm(export, config).eval(), family_of(config["architecture"])
    family.unfuse_(model)
    if "linear_head" not in config:
        return model
    try:
        kind = FeatureSpec(config["linear_head"]["pool"], config["linear_head"]["blocks"])
        head = read_weights(export / "heads.safetensors")
        return Headed(model, family, kind, head).eval()
    except Exception as error:  # a file, a name or a shape
        said = f"the linear head of {export} cannot be loaded: {first_line(error)}. Export it again."
        raise UserError(said) from error


class Headed(nn.Module):
    """A timm backbone and a linear head on features of its last blocks: a sweep's choice where timm has no such head.

    Args:
        backbone: of timm.
        family: its family, which reads the blocks.
        kind: features that the head reads.
        head: `weight` [classes, features] and `bias` [classes].
    """

    def __init__(self, backbone: nn.Module, family: type[Encoder], kind: FeatureSpec, head: dict[str, Tensor]) -> None:
        super().__init__()
        self.backbone, self.family, self.kind = backbone, family, kind
        self.num_classes, width = head["weight"].shape
        self.head = nn.Linear(width, self.num_classes)
        self.head.load_state_dict(head)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""

        def own(tokens: Tokens) -> Tensor:
            pooled: Tensor = self.backbone.forward_head(  # type: ignore[operator]
                tokens.raw, pre_logits=True
            )
            return pooled

        blocks = self.family.last_blocks(self.backbone, images, self.kind.blocks)
        return self.head(read(blocks, parts(self.kind), own))


def _output(model: Prepared) -> str:
    return "logits" if getattr(model.model, "num_classes", 0) else "features"


def _about(model: Prepared, config: dict[str, Any]) -> dict[str, Any]:
    """The content of `model.json`: input, output and preprocessing."""
    trained, pixels = config["pretrained_cfg"], model.random(1)
    about = {
        "architecture": config["architecture"],
        "input": {
            "name": "pixels",
            "shape": ["batch", *model.shape],
            "dtype": str(pixels.dtype).removeprefix("torch."),
            "pixels": {"normalised": "(x / 255 - mean) / std", "unit": "x / 255", "uint8": "x"}[model.pixels],
        },
        "output": {"name": _output(model), "shape": ["batch", model(pixels).shape[1]]},
        "preprocessing": {name: trained[name] for name in ("mean", "std", "crop_pct", "interpolation")},
        "label_names": config.get("linear_head", config).get("label_names", []),
    }
    return about if "value_range" not in config else {**about, "value_range": config["value_range"]}
