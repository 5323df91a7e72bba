"""Classification on top of a pretrained backbone, in every usual way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from unlabeled.backbone.build import family_of
from unlabeled.backbone.encoder import Encoder
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Batch, Method, Output, Progress
from unlabeled.transfer.build import (
    Trained,
    head_prefix,
    layers_of_modules,
    retrained,
    timm_arguments,
    timm_classifier,
)
from unlabeled.transfer.config import ClassifyConfig
from unlabeled.transfer.lora import ADDED, adapt_, merged
from unlabeled.transfer.losses import Objective, examples


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
        if trained is None:
            self.arguments = timm_arguments(encoder, config.pool, config.view.shape, config.frozen)
            self.model = timm_classifier(encoder, self.arguments, config.drop_path, len(counts))
        else:
            self.arguments = trained.arguments
            self.model = retrained(encoder, trained, len(counts))
        self.layers = {name: encoder.layer_of(name) for name, _ in self.model.named_parameters()}
        self.new = (head_prefix(self.model), "fc_norm.", "attn_pool.")
        initialize_(self.head, config)
        self.probe_norm = probe_norm(encoder.width) if config.mode == "linear" else None
        self.objective = Objective(config, counts)
        self._choose_what_learns()
        self.average = None if config.ema is None else follower(self.model)
        self.mixes = encoder.batch_dependent and not config.frozen

    def _choose_what_learns(self) -> None:
        mode = self.config.mode
        if mode == "lora":
            adapt_(self.model, family_of(self.architecture), self.config.lora)
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
        images, targets = examples(batch, self.num_classes, self.config.label_smoothing)
        self._eval_frozen_layers(progress)
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

    def batch_dependent(self) -> bool:
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

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Layers whose epoch has not come: the top one learns from the start, the next `wake_every` epochs later."""
        if self.config.mode != "gradual":
            return ()
        return (p for name, p in self.model.named_parameters() if not self._awake(name, self.layers[name], progress))

    def _eval_frozen_layers(self, progress: Progress) -> None:
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


@torch.no_grad()
def initialize_(head: nn.Linear, config: ClassifyConfig) -> None:
    """A new head: small normal weights, no bias."""
    nn.init.trunc_normal_(head.weight, std=config.head_std).mul_(config.head_scale)
    nn.init.zeros_(head.bias)


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
