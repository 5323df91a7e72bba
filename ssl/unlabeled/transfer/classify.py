"""Classification on top of a pretrained backbone, in four ways."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.data.views import View
from unlabeled.errors import UserError
from unlabeled.method import Batch, Method, Output, Progress
from unlabeled.nn.batchnorm import synchronise_
from unlabeled.nn.conv import ConvEncoder, stages
from unlabeled.nn.families import timm_cnn

if TYPE_CHECKING:
    from unlabeled.nn.encoder import Encoder

Mode = Literal["frozen", "linear", "full", "differential_lr"]
MIX_STREAM = 0x317


class ClassifyConfig(BaseModel, frozen=True, extra="forbid"):
    """Four modes: `frozen` trains a head on a fixed backbone, `linear` is MAE's probe (a BatchNorm without affine in
    front), `full` trains everything at one rate, `differential_lr` gives the backbone its own rates."""

    mode: Mode = Field("full", description="which parts learn, and how fast")
    pool: Literal["cls", "mean"] = Field("cls", description="class token, or mean of the patches (CNN)")
    view: View = Field(View(size=224, scale=(0.08, 1.0)), description="the crop trained on; its size is evaluated too")
    crop_pct: float = Field(0.875, gt=0, le=1, description="centre share of the resized picture used in evaluation")
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, allow_inf_nan=False, description="alpha of mixup; 0 = off")
    cutmix: float = Field(0.0, ge=0, allow_inf_nan=False, description="alpha of CutMix; 0 = off")
    backbone_lr: float = Field(
        1.0, gt=0, le=1, description="backbone's rate as a share of the head's (differential_lr)"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate per layer, or stage of a CNN, below the head (differential_lr)"
    )
    head_std: float = Field(0.02, gt=0, description="standard deviation of the head's initial weights")
    fraction: float = Field(1.0, gt=0, le=1, description="share of the labels to use, stratified and seeded")
    fraction_seed: int = Field(0, ge=0, description="which labels that share holds")

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is."""
        return self.mode in ("frozen", "linear")


class Classifier(Method):
    """A timm model with a head: its backbone from an encoder, its head new.

    Args:
        encoder: the backbone's weights and architecture.
        config: how to transfer.
        num_classes: classes of the head.
    """

    model: Any  # a timm model: its attributes are timm's

    def __init__(self, encoder: Encoder, config: ClassifyConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.arguments = timm_arguments(encoder, config)
        self.architecture = encoder.model
        self.model = _timm_model(encoder, self.arguments, config.drop_path, num_classes)
        self.layers = layer_ids(self.model, encoder)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)
        self.probe_norm = nn.BatchNorm1d(encoder.width, affine=False, eps=1e-6) if config.mode == "linear" else None
        if config.frozen:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith(head_prefix(self.model)))
        self.mixes = encoder.has_batch_norm and not config.frozen

    @property
    def head(self) -> nn.Linear:
        """The classifier of the timm model, whatever its name there."""
        return cast("nn.Linear", self.model.get_classifier())

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        targets = smooth(batch.labels, self.num_classes, self.config.label_smoothing)
        if self.config.mixup or self.config.cutmix:
            images, targets = mix(images, targets, self.config, progress.step)
        logits = self.logits(images).float()
        loss = torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()
        correct = (logits.detach().argmax(-1) == targets.argmax(-1)).float().mean()
        return Output(loss, {"train_accuracy": 100 * correct})

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W]."""
        if self.probe_norm is None:
            return self.model(images)
        pooled = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return self.head(self.probe_norm(pooled))

    def train(self, mode: bool = True) -> Classifier:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.model.eval()
        return self

    def compares_pictures(self) -> bool:
        """By batch normalisation in a CNN that learns."""
        return self.mixes

    def exports(self) -> dict[str, Encoder]:
        return {}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """MAE's fine-tuning rule: not 1-D tensors, class token or positions."""
        return parameter.ndim > 1 and not name.endswith((".bias", "cls_token", "pos_embed", "reg_token"))

    def lr_scale(self, name: str) -> float:
        """The backbone's share of the rate times layer decay, for `differential_lr`."""
        name = name.removeprefix("model.")
        if self.config.mode != "differential_lr" or name.startswith((head_prefix(self.model), "fc_norm.")):
            return 1.0
        above = max(self.layers.values()) - self.layers[name]
        return self.config.backbone_lr * self.config.layer_decay**above

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The timm model alone: a probe's normalisation is folded into its head."""
        if self.probe_norm is None:
            return self.model
        assert self.probe_norm.running_mean is not None and self.probe_norm.running_var is not None
        scale = (self.probe_norm.running_var + self.probe_norm.eps).rsqrt()
        twin = copy.deepcopy(self.model)
        folded, head = twin.get_classifier(), self.head
        folded.weight.copy_(head.weight * scale)
        folded.bias.copy_(head.bias - head.weight @ (self.probe_norm.running_mean * scale))
        return twin


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


def timm_arguments(encoder: Encoder, config: ClassifyConfig) -> dict[str, Any]:
    """What timm needs to build the classifier, beside its name and `num_classes`.

    With mean pooling a trained backbone gets a fresh norm after pooling and loses its own (MAE's fine-tuning); a frozen
    one keeps its own before pooling. Relative positions get a table in every block (SimMIM's fine-tuning). A CNN stays
    as it is.

    Raises:
        UserError: the class token is asked for and there is none.
    """
    if config.pool == "cls" and not encoder.has_class_token:
        raise UserError(f"task.pool is cls, but '{encoder.model}' has no class token. Set task.pool=mean.")
    if isinstance(encoder, ConvEncoder):
        return {**encoder.arguments, "img_size": list(config.view.shape)}
    relative = encoder.vit.pos_embed is None
    changed: dict[str, Any] = {"global_pool": "token" if config.pool == "cls" else "avg"}
    if config.pool == "mean":
        changed["use_fc_norm" if relative else "fc_norm"] = not config.frozen
    if relative:
        changed |= {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    return {**encoder.arguments, **changed, "img_size": list(config.view.shape)}


def smooth(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [B] as targets [B, classes], `smoothing` of each spread evenly over all classes."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(images: Tensor, targets: Tensor, config: ClassifyConfig, step: int) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch with itself in reverse, one ratio per batch, chosen evenly when both are on.

    The draw depends on the step alone, so that every process mixes alike and a resumed run repeats it.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((MIX_STREAM, step))))
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    if cut:
        images, share = cut_and_paste(images, share, rng)
    else:
        images = images * share + images.flip(0) * (1 - share)
    return images, targets * share + targets.flip(0) * (1 - share)


def cut_and_paste(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of the reversed batch into each image; returns the share of pixels that stayed (Yun et al. 2019)."""
    height, width = images.shape[-2:]
    h, w = (round(side * (1 - share) ** 0.5) for side in (height, width))
    y, x = int(rng.random() * height), int(rng.random() * width)
    rows, columns = (
        slice(max(0, y - h // 2), min(height, y + (h + 1) // 2)),
        slice(max(0, x - w // 2), min(width, x + (w + 1) // 2)),
    )
    mixed = images.clone()
    mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


def _timm_model(encoder: Encoder, arguments: dict[str, Any], drop_path: float, num_classes: int) -> Any:
    import timm

    from unlabeled.export import adapt

    cnn = isinstance(encoder, ConvEncoder)
    if cnn:
        model = timm_cnn(encoder.model, arguments, drop_path, num_classes)
        synchronise_(model)
    else:
        model = timm.create_model(encoder.model, num_classes=num_classes, drop_path_rate=drop_path, **arguments)
    weights = adapt(encoder.vit.state_dict(), encoder.native_grid, model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    new, dropped = {f"{head_prefix(model)}{name}" for name in ("weight", "bias")}, set()
    if not cnn and not isinstance(model.fc_norm, nn.Identity):
        new, dropped = new | {"fc_norm.weight", "fc_norm.bias"}, {"norm.weight", "norm.bias"}
    assert set(missing) == new and set(unexpected) == dropped, (missing, unexpected)
    return model
