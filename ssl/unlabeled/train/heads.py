"""The rest of a method beside its exported encoder: written into the export, and read to continue pretraining."""

from __future__ import annotations

from pathlib import Path

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Tensors, existing, read_weights, steady
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Method, PretrainMethod
from unlabeled.train.state import load_model


def split_heads(method: PretrainMethod) -> tuple[Encoder, Tensors]:
    """The first encoder that a method exports, and the rest of its state by name."""
    encoder = method.evaluated()
    prefix = _prefix_of(method, encoder)
    return encoder, {name: t for name, t in method.state_dict().items() if not name.startswith(prefix)}


def load_method(method: PretrainMethod, folder: str | Path) -> None:
    """Start a method from an export: the encoder's weights, and its heads. Strict.

    Raises:
        UserError: there is no such export, or it does not fit the method.
    """

    weights, heads = _with_heads(folder)
    prefix = _prefix_of(method, method.evaluated())
    try:
        load_model(method, {**{f"{prefix}{name}": tensor for name, tensor in weights.items()}, **heads})
    except UserError as error:
        raise UserError(
            f"init={folder} was left by another method or network than this recipe's: {error}. Name an export of this "
            "one, or set init=null."
        ) from error


@steady
def _with_heads(path: str | Path) -> tuple[Tensors, Tensors]:
    folder = existing(path)
    if not (folder / "heads.safetensors").exists():
        raise UserError(f"{folder} has no heads.safetensors, so pretraining cannot be continued from it")
    return read_weights(folder / "model.safetensors"), read_weights(folder / "heads.safetensors")


def _prefix_of(method: Method, encoder: Encoder) -> str:
    return next(f"{name}.vit." for name, module in method.named_modules() if module is encoder)
