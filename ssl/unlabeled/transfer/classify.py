"""Classification on top of a pretrained backbone, in every usual way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from unlabeled.data.mixing import Mixing
from unlabeled.data.views import Interpolation, View
from unlabeled.method import Batch, Method, Output, Progress
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.mixing import mix_images, mix_targets
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.transfer.build import (
    Trained,
    head_prefix,
    layer_ids,
    layers_of_modules,
    retrained,
    timm_arguments,
    timm_classifier,
)
from unlabeled.transfer.lora import ADDED, Lora, adapt_, merged
from unlabeled.transfer.losses import Objective, smooth

if TYPE_CHECKING:
    from unlabeled.nn.encoder import Encoder

Mode = Literal["frozen", "linear", "attentive", "lora", "full", "differential_lr", "gradual", "retrain"]
FROZEN: tuple[Mode, ...] = ("frozen", "linear", "attentive", "retrain")


class ClassifyConfig(BaseModel, frozen=True, extra="forbid"):
    """Modes: `frozen` trains a head on a fixed backbone, `linear` is MAE's probe (a BatchNorm without affine in front),
    `attentive` a cross-attention pooling and a head, `lora` low-rank additions to attention and MLP and a head, `full`
    everything at one rate, `differential_lr` gives the backbone its own rates by depth, `gradual` wakes one layer after
    another from the top, `retrain` gives a classifier that was fine-tuned before a new head and leaves the rest."""

    mode: Mode = Field("full", description="which parts learn, and how fast")
    pool: Literal["cls", "mean", "mean_max", "attention"] = Field(
        "cls",
        validate_default=True,
        description="class token, mean of the patches (CNN), half the sum of their mean and maximum, or a learnt query "
        "that attends to all tokens (attentive always does this; retrain keeps what the classifier has)",
    )
    view: View = Field(View(size=224, scale=(0.08, 1.0)), description="the crop trained on; its size is evaluated too")
    crop_pct: float = Field(0.875, gt=0, le=1, description="centre share of the resized picture used in evaluation")
    interpolation: Interpolation | None = Field(
        None, description="how pictures are resized in evaluation; null = as the view's"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixing: Mixing = Field(Mixing(), description="mixup and CutMix of neighbours in the batch")
    flood: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="level below which the loss is raised again; null = none"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of averaged weights, which are then scored and exported; null = none",
    )
    backbone_lr: float = Field(
        1.0, gt=0, le=1, description="backbone's rate as a share of the head's (differential_lr, gradual)"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the rate per layer, or stage of a CNN, below the head (differential_lr, gradual)",
    )
    wake_every: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="epochs from one layer's awakening to the next (gradual)"
    )
    lora: Lora = Field(Lora(), description="rank and layers (lora)")
    head_std: float = Field(0.02, gt=0, description="standard deviation of the head's initial weights")
    head_scale: float = Field(
        1.0, gt=0, le=1, description="factor on them after they are drawn (0.001 in SimMIM's and iBOT's fine-tuning)"
    )
    balance: Literal["none", "sqrt", "balanced"] = Field(
        "none", description="how often a class is drawn: as it occurs, by the root of its count, or all alike"
    )
    balance_from: float = Field(0.0, ge=0, allow_inf_nan=False, description="epoch from which it is balanced")
    effective_number: float | None = Field(
        None, ge=0, lt=1, description="beta of the classes' weights in the loss, such as 0.9999; null = all alike"
    )
    logit_adjustment: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="log frequencies times this are added to the logits in training"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the labels to use, stratified and seeded")
    shots: int | None = Field(None, ge=1, description="labelled pictures to use of every class; null = all")
    long_tail: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="make the classes unbalanced, the last so many times rarer"
    )
    fraction_seed: int = Field(0, ge=0, description="which labels those are")

    @field_validator("pool")
    @classmethod
    def _attentive_attends(cls, pool: str, info: ValidationInfo) -> str:
        if info.data.get("mode") != "attentive":
            return pool
        if pool not in ("cls", "attention"):
            raise ValueError(f"attentive pools by attention: leave pool out, found {pool}")
        return "attention"

    @field_validator("shots")
    @classmethod
    def _shots_or_a_share(cls, shots: int | None, info: ValidationInfo) -> int | None:
        if shots is not None and info.data.get("fraction", 1.0) < 1:
            raise ValueError(f"expected shots or a fraction, found both ({shots}, {info.data['fraction']:g})")
        return shots

    @property
    def evaluated_with(self) -> Interpolation:
        """How pictures are resized in evaluation."""
        return self.interpolation or self.view.interpolation

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is, running statistics included."""
        return self.mode in FROZEN or self.mode == "lora"

    @property
    def by_depth(self) -> bool:
        """Whether layers have rates of their own."""
        return self.mode in ("differential_lr", "gradual")


class Classifier(Method):
    """A timm model with a head: its backbone from an encoder, its head new.

    Args:
        encoder: the backbone's weights and architecture.
        config: how to transfer.
        counts: training pictures of each class, all of which the head knows.
        trained: for `retrain`, the classifier whose head is replaced.
    """

    model: Any  # a timm model: its attributes are timm's

    def __init__(
        self, encoder: Encoder, config: ClassifyConfig, counts: Sequence[int], trained: Trained | None = None
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, len(counts)
        self.architecture = encoder.model
        self.arguments = timm_arguments(encoder, config) if trained is None else trained.arguments
        if trained is None:
            self.model = timm_classifier(encoder, self.arguments, config.drop_path, len(counts))
        else:
            self.model = retrained(encoder, trained, len(counts))
        self.layers = layer_ids(self.model, encoder)
        self.new = (head_prefix(self.model), "fc_norm.", "attn_pool.")
        self._new_head()
        self.probe_norm = probe_norm(encoder.width) if config.mode == "linear" else None
        self.objective = Objective(config, counts)
        self._choose_what_learns()
        self.average = None if config.ema is None else follower(self.model)
        self.mixes = encoder.has_batch_norm and not config.frozen

    def _new_head(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=self.config.head_std)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(self.config.head_scale)

    def _choose_what_learns(self) -> None:
        mode = self.config.mode
        if mode == "lora":
            adapt_(self.model, self.config.lora)
        if self.config.frozen:
            learns = head_prefix(self.model) if mode == "retrain" else self.new
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith(learns) or name.endswith(ADDED))
        self.depths = layers_of_modules(self.model, self.layers) if mode == "gradual" else []

    @property
    def head(self) -> nn.Linear:
        """The classifier of the timm model, whatever its name there."""
        return cast("nn.Linear", self.model.get_classifier())

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        targets = smooth(batch.labels, self.num_classes, self.config.label_smoothing)
        if batch.mix is not None:
            images, targets = mix_images(images, batch.mix), mix_targets(targets, batch.mix)
        self._still_what_sleeps(progress)
        logits = self.logits(images).float()
        correct = (logits.detach().argmax(-1) == targets.argmax(-1)).float().mean()
        return Output(self.objective(logits, targets), {"train_accuracy": 100 * correct})

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W], from the weights that learn."""
        return self._logits(self.model, images)

    def predict(self, images: Tensor) -> Tensor:
        """The same from the weights that are scored and exported: averaged ones, where there are any."""
        return self._logits(self.model if self.average is None else self.average, images)

    def _logits(self, model: Any, images: Tensor) -> Tensor:
        if self.probe_norm is None:
            return model(images)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        return model.get_classifier()(self.probe_norm(pooled))

    def train(self, mode: bool = True) -> Classifier:
        """A frozen backbone stays in evaluation mode, and so do averaged weights."""
        super().train(mode)
        if self.config.frozen:
            self.model.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def after_step(self, progress: Progress) -> None:
        if self.average is not None and self.config.ema is not None:
            ema_(self.average, self.model, self.config.ema)
            for own, source in zip(self.average.buffers(), self.model.buffers(), strict=True):
                own.copy_(source)

    def compares_pictures(self) -> bool:
        """By batch normalisation, of a CNN that learns or before a probe's head; by flooding, which goes by the mean
        loss of the step."""
        return self.mixes or self.probe_norm is not None or self.config.flood is not None

    def exports(self) -> dict[str, Encoder]:
        return {}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """MAE's fine-tuning rule: not 1-D tensors, tokens or positions."""
        return parameter.ndim > 1 and not name.endswith((".bias", "cls_token", "pos_embed", "reg_token", ".latent"))

    def lr_scale(self, name: str) -> float:
        """The backbone's share of the rate times layer decay, where layers have rates of their own."""
        name = name.removeprefix("model.")
        if not self.config.by_depth or name.startswith(self.new):
            return 1.0
        return self.config.backbone_lr * self.config.layer_decay ** self._below_the_head(self.layers[name])

    # ---------------------------------------------------------------- waking one layer after another

    def asleep(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Layers whose epoch has not come: the top one learns from the start, the next `wake_every` epochs later."""
        if self.config.mode != "gradual":
            return ()
        return (p for name, p in self.model.named_parameters() if not self._awake(name, self.layers[name], progress))

    def _still_what_sleeps(self, progress: Progress) -> None:
        """Sleeping layers neither update running statistics nor drop anything."""
        if self.training:
            for module, depth in self.depths:
                module.train(self._awake("", depth, progress))

    def _awake(self, name: str, depth: int, progress: Progress) -> bool:
        due = self._below_the_head(depth) * self.config.wake_every
        return name.startswith(self.new) or progress.epoch >= due

    def _below_the_head(self, depth: int) -> int:
        return max(self.layers.values()) - depth

    # ---------------------------------------------------------------- what is exported

    @torch.no_grad()
    def exported(self) -> dict[str, Tensor]:
        """The state of the timm model to load: averaged where there is an average, LoRA's products added, a probe's
        normalisation folded into its head."""
        model = self.model if self.average is None else self.average
        state = merged(model)
        if self.probe_norm is not None:
            self._fold_into_head(state)
        return state

    def _fold_into_head(self, state: dict[str, Tensor]) -> None:
        norm, prefix = self.probe_norm, head_prefix(self.model)
        assert norm is not None and norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        weight = state[f"{prefix}weight"]
        state[f"{prefix}bias"] = state[f"{prefix}bias"] - weight @ (norm.running_mean * scale)
        state[f"{prefix}weight"] = weight * scale


def probe_norm(width: int) -> BatchNorm:
    """MAE's BatchNorm before the head of a probe, but over all processes: officially each GPU has its own."""
    norm = BatchNorm(width, affine=False)
    norm.eps = 1e-6
    return norm


def follower(model: nn.Module) -> nn.Module:
    """A copy of a model for averaged weights: no gradients, evaluation mode."""
    twin = copy.deepcopy(model)
    follow_(twin, model)
    return twin.eval()
