"""Self-supervised pretraining for images: from a folder of pictures to a timm backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlabeled.backbone.weights import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import, so they wait until they are asked for
    if name == "load_encoder":
        from unlabeled.backbone.weights import load_encoder

        return load_encoder
    raise AttributeError(f"module 'unlabeled' has no attribute {name!r}")
