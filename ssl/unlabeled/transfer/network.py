"""A timm classifier from an encoder: its arguments and its weights."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError

ClassifierPool = Literal["cls", "mean", "mean_max", "attention", "own"]


class Trained(NamedTuple):
    """A classifier that fine-tuning left, to be given another head: timm's arguments, and the weights with the head."""

    arguments: dict[str, Any]
    weights: dict[str, Tensor]


# advice where a network does not have a pooling
INSTEAD = {
    "mean": "task.pool is mean, but timm's '{}' pools by itself. Set task.pool=own.",
    "own": "task.pool is own, but timm's '{}' has no pooling of its own. Set task.pool=mean.",
    "cls": "task.pool is cls, but '{}' has no class token. Set task.pool=mean.",
    "mean_max": "task.pool is mean_max, which timm's '{}' does not have. Set task.pool=mean.",
    "attention": "task.pool is attention, as task.strategy.name=attentive always has it, and timm's '{}' does not. Set "
    "task.pool=mean, and task.strategy.name=linear instead of attentive.",
}


def timm_arguments(encoder: Encoder, pool: ClassifierPool, shape: tuple[int, int], frozen: bool) -> dict[str, Any]:
    """Arguments of the timm classifier, see `Encoder.classifier_arguments`. Raises UserError when it cannot pool so."""
    if pool not in encoder.pools:
        raise UserError(INSTEAD[pool].format(encoder.model))
    return encoder.classifier_arguments(pool, shape, frozen)


def timm_classifier(
    encoder: Encoder, arguments: dict[str, Any], drop_path: float, num_classes: int
) -> tuple[Any, tuple[str, ...]]:
    """A timm model with the encoder's weights and a new head, and how the names of parameters begin that are new: of
    the head, and of a pooling or norm behind the last block that the encoder does not have. `drop_path` is the rate
    of the last block."""
    model = encoder.create(encoder.model, arguments, drop_path, num_classes)
    weights = encoder.fitted(encoder.vit.state_dict(), encoder.native_grid, model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    heads = head_prefixes(model)
    new = [name for name in missing if not name.startswith(heads)]
    assert all(encoder.layer_of(name) > encoder.depth for name in (*new, *unexpected)), (missing, unexpected)
    return model, (*heads, *new)


def retrained(encoder: Encoder, trained: Trained, num_classes: int, drop_path: float = 0.0) -> Any:
    """A timm model with all weights of a trained classifier but its head, which is new."""
    model = encoder.create(encoder.model, trained.arguments, drop_path, num_classes)
    heads = head_prefixes(model)
    weights = {name: tensor for name, tensor in trained.weights.items() if not name.startswith(heads)}
    missing, unexpected = model.load_state_dict(encoder.fitted(weights, encoder.native_grid, model), strict=False)
    assert all(name.startswith(heads) for name in missing) and not unexpected, (missing, unexpected)
    return model


def head_prefixes(model: Any) -> tuple[str, ...]:
    """How the names of a timm classifier's head begin; a distilled network has two."""
    layers = model.pretrained_cfg["classifier"]
    return tuple(f"{layer}." for layer in ((layers,) if isinstance(layers, str) else layers))
