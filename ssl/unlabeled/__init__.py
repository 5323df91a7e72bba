"""Self-supervised pretraining for images: from a folder of images to a timm backbone."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# the module of each name; torch and timm take seconds to import, so they wait until they are asked for. Type checkers
# read __init__.pyi
_MODULES = {
    "Embedder": "interface.transformer",
    "Embeddings": "interface.results",
    "Index": "search.index",
    "Model": "interface.model",
    "Predictions": "interface.results",
    "Run": "interface.runs",
    "Scores": "interface.scores",
    "Stopped": "errors",
    "UserError": "errors",
    "finetune": "interface.runs",
    "load": "interface.model",
    "load_detector": "transfer.detection.export",
    "load_encoder": "backbone.weights",
    "load_segmenter": "transfer.segmentation.export",
    "push_to_hub": "serve.hub",
}
_PACKAGES = ("evaluate", "pretrain")  # that are functions, too
__all__ = ["__version__", *_MODULES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
