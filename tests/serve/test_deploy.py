"""Programs without timm say what timm says."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder, timm_config, write_export
from unlabeled.errors import UserError
from unlabeled.serve import deploy as module
from unlabeled.serve.deploy import deploy

PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9)
CLASSES = ("ant", "bee", "cow")
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    "test_resnet": {},
}
ALONE = """
import sys, numpy, torch
sys.modules["unlabeled"] = sys.modules["timm"] = None
pixels = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], torch.export.load(sys.argv[1]).module()(pixels).detach().numpy())
"""


def export(folder: Path, name: str, classes: tuple[str, ...] = ()) -> Path:
    """An encoder, or a classifier of `classes`, with running statistics that are not those of a new network."""
    torch.manual_seed(0)
    encoder = EncoderConfig(model=name, **MODELS[name]).build((32, 32))
    for key, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, *((0.5, 2.0) if key.endswith("var") else (-0.3, 0.3)))
    if not classes:
        export_encoder(folder, encoder, PREPARED, "card", {})
        return folder
    config = timm_config(encoder.model, encoder.arguments, encoder.width, PREPARED, len(classes), classes)
    model = timm.create_model(name, num_classes=len(classes), **config["model_args"])
    model.load_state_dict(encoder.vit.state_dict(), strict=False)
    nn.init.normal_(model.get_classifier().weight)
    write_export(folder, dict(model.state_dict()), config, "card")
    return folder


def expected(folder: Path, pictures: Tensor) -> Tensor:
    """timm's answer to uint8 pictures."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPARED.mean, PREPARED.std))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model((pictures.float() / 255 - mean) / std)


def pictures(count: int = 5) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name, classes", [("vit_tiny_patch16_224", ()), ("test_resnet", CLASSES)])
def test_torch_gives_timms_answer(tmp_path: Path, name: str, classes: tuple[str, ...]) -> None:
    folder = export(tmp_path / "export", name, classes)
    assert main(["export", str(folder), str(tmp_path / "out"), "--normalize", "uint8"]) == 0
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(pictures())
    torch.testing.assert_close(found, expected(folder, pictures()), rtol=1e-4, atol=1e-4)


def test_torch_alone_does(tmp_path: Path) -> None:
    folder = export(tmp_path / "export", "vit_tiny_patch16_224", CLASSES)
    deploy(folder, tmp_path / "out", "torch", "uint8")
    np.save(tmp_path / "in.npy", pictures().numpy())
    arguments = [tmp_path / "out" / "model.pt2", tmp_path / "in.npy", tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, capture_output=True)
    found = torch.from_numpy(np.load(tmp_path / "out.npy"))
    torch.testing.assert_close(found, expected(folder, pictures()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, pixels", [("test_resnet", "normalised"), ("test_resnet", "unit"), ("vit_tiny_patch16_224", "uint8")]
)
def test_onnx_gives_timms_answer(tmp_path: Path, name: str, pixels: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = export(tmp_path / "export", name, CLASSES)
    worst = deploy(folder, tmp_path / "out", "onnx", pixels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPARED.mean, PREPARED.std))
    unit = pictures().float() / 255
    given = {"normalised": (unit - mean) / std, "unit": unit, "uint8": pictures()}[pixels]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [part.name for part in session.get_outputs()] == ["logits"]
    found = torch.from_numpy(session.run(None, {"pixels": given.numpy()})[0])
    torch.testing.assert_close(found, expected(folder, pictures()), rtol=1e-4, atol=1e-4)
    assert 0 <= worst < 1e-3


def test_what_is_written_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path / "export", "test_resnet", CLASSES)
    assert main(["export", str(folder), str(tmp_path / "out"), "--normalize", "unit"]) == 0
    about = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert about["label_names"] == list(CLASSES)
    [program] = (path for path in (tmp_path / "out").iterdir() if path.name != "model.json")
    assert about["sha256"] == {program.name: hashlib.sha256(program.read_bytes()).hexdigest()}
    assert about["input"] == {"name": "pixels", "shape": ["batch", 3, 32, 32], "dtype": "float32", "pixels": "x / 255"}
    assert about["output"] == {"name": "logits", "shape": ["batch", 3]}
    assert about["preprocessing"] == {
        "mean": list(PREPARED.mean),
        "std": list(PREPARED.std),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    assert "differs from the timm model by at most" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["export", "out"]


def test_what_differs_is_refused_and_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = export(tmp_path / "export", "test_resnet"), module.READERS["torch"]

    def off(file: Path) -> module.Model:
        return lambda pixels: 1.001 * read(file)(pixels)

    monkeypatch.setitem(module.READERS, "torch", off)
    with pytest.raises(UserError, match=r"differs from the timm model by .*, expected at most"):
        deploy(folder, tmp_path / "out", "torch")
    assert [file.name for file in tmp_path.iterdir()] == ["export"]


def test_batches_of_two_sizes_are_compared_and_nan_is_a_difference() -> None:
    trained = {"input_size": (3, 4, 4), "mean": PREPARED.mean, "std": PREPARED.std}
    model, sizes = module.Prepared(nn.Flatten(), trained, "unit"), []

    def other(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return model(pixels) + 1e-5 * (4 - len(pixels))

    assert module.difference(model, other) == pytest.approx(3e-5, rel=0.1) and sizes == [1, 3]
    for factor in (1.001, math.nan):
        with pytest.raises(UserError, match=r"differs from the timm model"):
            module.difference(model, lambda pixels, factor=factor: factor * model(pixels))  # type: ignore[misc]


def test_what_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not an export"):
        deploy(tmp_path / "nothing", tmp_path / "out", "torch")
    folder = export(tmp_path / "export", "test_resnet")
    with pytest.raises(UserError, match="is there already"):
        deploy(folder, folder, "torch")
    with pytest.raises(UserError, match=r"cannot write to /proc/out: .*Choose another folder"):
        deploy(folder, Path("/proc/out"), "torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"ONNX needs onnxscript.*pip install onnx onnxruntime onnxscript"):
        deploy(folder, tmp_path / "out", "onnx")
