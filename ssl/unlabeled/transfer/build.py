"""A timm classifier from an encoder: its arguments, its weights, and how deep each of its parameters lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from unlabeled.backbone.build import is_beit, is_cnn, timm_cnn
from unlabeled.backbone.families.cnn import ConvEncoder, stages
from unlabeled.backbone.folder import TIMM_POOLS
from unlabeled.errors import UserError
from unlabeled.nn.batchnorm import synchronise_

if TYPE_CHECKING:
    from unlabeled.backbone.encoder import Encoder
    from unlabeled.transfer.config import ClassifyConfig


class Trained(NamedTuple):
    """A classifier that fine-tuning left, to be given another head.

    Attributes:
        arguments: timm's, of its model.
        weights: of its model, head included.
    """

    arguments: dict[str, Any]
    weights: dict[str, Tensor]


def timm_arguments(encoder: Encoder, config: ClassifyConfig) -> dict[str, Any]:
    """What timm needs to build the classifier, beside its name and `num_classes`.

    With a pooling of patches a trained backbone gets a fresh norm after pooling and loses its own (MAE's fine-tuning);
    a frozen one keeps its own before pooling. A table of relative positions that is shared is copied into every block
    (SimMIM's fine-tuning).

    Raises:
        UserError: the network cannot be pooled as asked.
    """
    check_pool(encoder, config.pool)
    pool, size = TIMM_POOLS[config.pool], list(config.view.shape)
    if isinstance(encoder, ConvEncoder):
        # timm's default is not spelt out, so that the arguments stay those of the encoder
        return {**encoder.arguments, **({} if pool == "avg" else {"global_pool": pool}), "img_size": size}
    beit = is_beit(encoder.model)
    changed: dict[str, Any] = {"global_pool": pool}
    if config.pool in ("mean", "mean_max"):
        changed["use_fc_norm" if beit else "fc_norm"] = not config.frozen
    if beit and encoder.vit.rel_pos_bias is not None:
        changed |= {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    return {**encoder.arguments, **changed, "img_size": size}


def check_pool(encoder: Encoder, pool: str) -> None:
    """Raise UserError when a network cannot be pooled so."""
    if pool == "cls" and not encoder.has_class_token:
        raise UserError(f"task.pool is cls, but '{encoder.model}' has no class token. Set task.pool=mean.")
    beit = is_beit(encoder.model)
    if pool == "attention" and (beit or isinstance(encoder, ConvEncoder)):
        raise UserError(
            f"task.pool is attention, as task.mode=attentive always has it, and timm's '{encoder.model}' does not. Set "
            "task.pool=mean, and task.mode=linear instead of attentive."
        )
    if pool == "mean_max" and beit:
        raise UserError(f"task.pool is {pool}, which timm's '{encoder.model}' does not have. Set task.pool=mean.")


def timm_classifier(encoder: Encoder, arguments: dict[str, Any], drop_path: float, num_classes: int) -> Any:
    """A timm model with the encoder's weights and a new head.

    Args:
        encoder: the backbone.
        arguments: see `timm_arguments`.
        drop_path: rate of the last block.
        num_classes: of the head.
    """
    from unlabeled.backbone.weights import adapt

    model = create(encoder.model, arguments, drop_path, num_classes)
    missing, unexpected = model.load_state_dict(
        adapt(encoder.vit.state_dict(), encoder.native_grid, model), strict=False
    )
    new, dropped = new_names(model), set()
    if any(name.startswith("fc_norm.") for name in new):
        dropped = {"norm.weight", "norm.bias"}
    assert set(missing) == new and set(unexpected) == dropped, (missing, unexpected)
    return model


def retrained(encoder: Encoder, trained: Trained, num_classes: int) -> Any:
    """A timm model with all weights of a trained classifier but its head, which is new."""
    from unlabeled.backbone.weights import adapt

    model = create(encoder.model, trained.arguments, 0.0, num_classes)
    prefix = head_prefix(model)
    weights = {name: tensor for name, tensor in trained.weights.items() if not name.startswith(prefix)}
    missing, unexpected = model.load_state_dict(adapt(weights, encoder.native_grid, model), strict=False)
    assert all(name.startswith(prefix) for name in missing) and not unexpected, (missing, unexpected)
    return model


def create(architecture: str, arguments: dict[str, Any], drop_path: float, num_classes: int) -> Any:
    """A timm model by name; a CNN's batch normalisation sees the batches of all processes."""
    import timm

    if is_cnn(architecture):
        model = timm_cnn(architecture, arguments, drop_path, num_classes)
        synchronise_(model)
        return model
    return timm.create_model(architecture, num_classes=num_classes, drop_path_rate=drop_path, **arguments)


def new_names(model: Any) -> set[str]:
    """Parameters of a timm classifier that no encoder has: head, pooling, and the norm that comes after it."""
    parts = (head_prefix(model), "attn_pool.", "fc_norm.")
    return {name for name, _ in model.named_parameters() if name.startswith(parts)}


def head_prefix(model: Any) -> str:
    """How the names of a timm classifier's head begin."""
    return f"{model.pretrained_cfg['classifier']}."


def layer_ids(model: Any, encoder: Encoder) -> dict[str, int]:
    """How deep every parameter of a timm classifier lies: blocks of a ViT (see `layer_id`), stages of a CNN."""
    if isinstance(encoder, ConvEncoder):
        return stages(model)
    return {name: layer_id(name, encoder.depth) for name, _ in model.named_parameters()}


def layer_id(name: str, depth: int) -> int:
    """Depth of a timm ViT's parameter: 0 for embeddings, i + 1 for block i, depth + 1 for everything above (MAE's
    `util/lr_decay.py`)."""
    if name in ("cls_token", "pos_embed", "reg_token", "mask_token") or name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def layers_of_modules(model: nn.Module, layers: dict[str, int]) -> list[tuple[nn.Module, int]]:
    """Every module that has parameters of its own, and how deep they lie."""
    found = []
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)]
        if own and prefix:
            found.append((module, layers[own[0]]))
    return found
