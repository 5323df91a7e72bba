"""Self-supervised pretraining for images: from a folder of images to a timm backbone."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import, so they wait until they are asked for
    if name == "load_encoder":
        return importlib.import_module("unlabeled.backbone.weights").load_encoder
    raise AttributeError(f"module 'unlabeled' has no attribute {name!r}")
