"""Official numbers: safetensors with their settings in the metadata, JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

DEFAULT = Path(__file__).parents[1] / "golden"


def golden_folder(config: pytest.Config, method: str) -> Path:
    """The folder of one method's numbers; `--golden` may name it or its parent."""
    given = config.getoption("--golden")
    root = Path(given) if given else DEFAULT
    return root / method if (root / method).is_dir() else root


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """The numbers of the method that a module is named for."""
    return golden_folder(request.config, request.module.__name__.rpartition("test_")[2])


def each(config: pytest.Config, method: str, file: str, key: str | None = None) -> list[Any]:
    """What a file's settings hold, or hold under `key`, to have a test each."""
    path = golden_folder(config, method) / f"{file}.safetensors"
    if not path.is_file():
        return ["absent"]
    settings = Golden(path).config
    return sorted(settings if key is None else settings[key])


class Golden:
    """One safetensors file. A tensor that it lacks is reported as absent."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.is_file():
            pytest.skip(f"absent: {file}")
        with safe_open(file, "pt") as opened:
            self.config: dict[str, Any] = json.loads(opened.metadata()["config"])
            self.tensors: dict[str, Tensor] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.tensors:
            pytest.skip(f"absent from {self.file}: {key}")
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `prefix/`, by what follows."""
        found = {key.removeprefix(f"{prefix}/"): t for key, t in self.tensors.items() if key.startswith(f"{prefix}/")}
        if not found:
            pytest.skip(f"absent from {self.file}: {prefix}/")
        return found


def read_json(file: Path) -> Any:
    if not file.is_file():
        pytest.skip(f"absent: {file}")
    return json.loads(file.read_text(encoding="utf-8"))


def assert_close(ours: Tensor, golden: Tensor, tolerance: float, what: str) -> None:
    """max|difference| / max|golden| at most `tolerance`."""
    assert ours.shape == golden.shape, f"{what}: shape {list(ours.shape)}, official {list(golden.shape)}"
    scale = golden.abs().max().clamp_min(torch.finfo(golden.dtype).tiny)
    error = ((ours.detach() - golden).abs().max() / scale).item()
    assert error <= tolerance, f"{what}: off by {error:.2e} of the tensor's maximum, allowed {tolerance:.0e}"
