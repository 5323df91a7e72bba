"""Classification on top of a pretrained backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.data.batch.batch import Batch
from unlabeled.nn.batchnorm import normalises
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Output, Progress, Symptom
from unlabeled.report.card import Made, classifier_card
from unlabeled.transfer.label_task import LabelTask
from unlabeled.transfer.losses import Objective, examples
from unlabeled.transfer.network import (
    ClassifierPool,
    Trained,
    head_prefixes,
    retrained,
    timm_arguments,
    timm_classifier,
)
from unlabeled.transfer.strategies import full
from unlabeled.transfer.strategy import STRATEGIES, Strategy
from unlabeled.transfer.task import ImageTask, Traced
from unlabeled.transfer.unlabelled import Consistency, Rows, Unlabelled


class Config(LabelTask, frozen=True, extra="forbid"):
    """Train one head, and as much of the backbone as the strategy says."""

    name: Literal["classify"] = "classify"
    strategy: Annotated[Strategy, STRATEGIES] = Field(full.Config(), description="which parts learn, how fast and when")
    pool: ClassifierPool = Field(
        "cls",
        validate_default=True,
        description="class token, mean of the patches (CNN), half the sum of their mean and maximum, or a learnt query "
        "that attends to all tokens (attentive always does this; retrain keeps what the classifier has); unless set, "
        "as the encoder is evaluated",
    )
    flood: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="level below which the loss is raised again; null = none"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of averaged weights, which are then scored and exported; null = none",
    )
    unlabelled: Unlabelled | None = Field(
        None, description="pictures without labels to learn from as well (FreeMatch, FixMatch); null = none"
    )

    @field_validator("pool")
    @classmethod
    def _pooled_as_the_strategy_says(cls, pool: ClassifierPool, info: ValidationInfo) -> ClassifierPool:
        strategy: Strategy | None = info.data.get("strategy")
        return pool if strategy is None else strategy.pooling(pool)

    @model_validator(mode="after")
    def _pairs_of_views(self) -> Config:
        if self.unlabelled is None:
            return self
        odd = {
            "mixing=null": self.mixing.on,
            "repeats=1": self.repeats > 1,
            "balance=none": self.balance != "none",
        }
        if found := " ".join(f"task.{change}" for change, there in odd.items() if there):
            raise ValueError(
                "unlabelled pictures come in a fixed ratio, in a weak and a strong view of the same picture, which "
                f"other ways to fill a batch would break: set {found}, or task.unlabelled=null"
            )
        return self

    @property
    def from_classifier(self) -> bool:
        return self.strategy.from_classifier

    @property
    def without_labels(self) -> Unlabelled | None:
        return self.unlabelled

    @property
    def own_pooling(self) -> bool:
        return self.strategy.own_pooling

    @property
    def way(self) -> str:
        return self.strategy.name

    def build(self, encoder: Encoder, counts: Sequence[int], trained: Trained | None = None) -> ImageTask:
        return Classifier(encoder, self, counts, trained)

    def describe(self) -> str:
        pool = "as it was trained" if self.from_classifier else self.pool
        more = "" if self.unlabelled is None else f", {self.unlabelled.describe()}"
        return f"strategy {self.strategy.name}, pool {pool}{more}"

    def unfreezing(self, method: Classifier, epochs: float) -> str:
        return self.strategy.plan(max(method.layers.values()), epochs)


class Classifier(ImageTask):
    """A timm model with a head: its backbone from an encoder, or from a trained classifier; its head new."""

    model: Any  # a timm model: its attributes are timm's

    def __init__(self, encoder: Encoder, config: Config, counts: Sequence[int], trained: Trained | None = None) -> None:
        super().__init__()
        self.config, self.strategy, self.num_classes = config, config.strategy, len(counts)
        self.architecture, self.family = encoder.model, type(encoder)
        self.new: tuple[str, ...]
        if trained is None:
            self.arguments = timm_arguments(encoder, config.pool, config.view.shape, self.strategy.frozen)
            drop_path = self.strategy.last_drop_path()
            self.model, self.new = timm_classifier(encoder, self.arguments, drop_path, len(counts))
        else:
            self.arguments = trained.arguments
            self.model = retrained(encoder, trained, len(counts), self.strategy.last_drop_path())
            self.new = head_prefixes(self.model)
        self.layers = {name: encoder.layer_of(name) for name, _ in self.model.named_parameters()}
        for head in self.heads:
            config.initialize_(head)
        # timm's other heads have norms of their own, and nothing can be folded into them
        linear = len(self.heads) == 1 and isinstance(self.head, nn.Linear)
        self.probe_norm = self.strategy.head_norm(self.model.head_hidden_size) if linear else None
        self.objective = Objective(counts, config.effective_number, config.logit_adjustment, config.flood)
        self.consistency = None if config.unlabelled is None else Consistency(config.unlabelled, len(counts))
        self.strategy.start_(self.model, type(encoder), head_prefixes(self.model), self.new)
        for name, parameter in self.model.named_parameters():
            layer = None if name.startswith(self.new) else self.layers.get(name)
            if layer is not None and math.isinf(self.strategy.starts(self._below_the_head(layer))):
                parameter.requires_grad_(False)  # it never begins to learn
        self.waiting = list(self._waiting())
        self.average: nn.Module | None = None
        if config.ema is not None:  # averaged weights: no gradients, evaluation mode
            self.average = copy.deepcopy(self.model).eval()
            follow_(self.average, self.model)

    @property
    def head(self) -> nn.Linear:
        """The classifier of the timm model, whatever its name there."""
        return self.heads[0]

    @property
    def heads(self) -> tuple[nn.Linear, ...]:
        """The classifiers of the timm model: a distilled network has two, whose mean it gives."""
        found: Any = self.model.get_classifier()
        return (*found,) if isinstance(found, tuple | nn.ModuleList) else (found,)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        self.wake(progress)
        if self.consistency is None:
            return self._labelled(batch)
        labelled, rows = self.consistency.separate(batch)
        loss, metrics, _ = self._labelled(labelled)
        more, measures = self._unlabelled(self.consistency, rows)
        return Output(loss + more, {**metrics, "supervised": loss.detach(), **measures})

    def wake(self, progress: Progress) -> None:
        """In training, run layers that are still frozen in evaluation mode: no BatchNorm updates, no dropout."""
        if self.training:
            for module, start in self.waiting:
                module.train(progress.epoch >= start)

    def _labelled(self, batch: Batch) -> Output:
        images, targets = examples(batch, self.num_classes, self.config.label_smoothing)
        logits = self.logits(images).float()
        correct = (logits.detach().argmax(-1) == targets.argmax(-1)).float().mean()
        return Output(self.objective(logits, targets), {"train_accuracy": 100 * correct})

    def _unlabelled(self, consistency: Consistency, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():  # from the averaged weights where there are any
            weak = self.predict(rows.weak).float()
        return consistency(weak, self.logits(rows.strong).float(), rows.truth)

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W], from the weights that learn."""
        return self._logits(self.model, images)

    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W], from the averaged weights where there are any."""
        return self._logits(self.network, images)

    @property
    def network(self) -> Any:
        return self.model if self.average is None else self.average

    def traced(self, images: Tensor) -> Traced:
        with torch.device("meta"):
            encoder = self.family.build(self.architecture, self.family.without_head(self.architecture, self.arguments))
        made = self.network.forward_features(images)
        scores = self._head(self.network, made)
        return Traced(scores, made.patches if isinstance(made, Tokens) else made, encoder.native_grid)

    def _logits(self, model: Any, images: Tensor) -> Tensor:
        return model(images) if self.probe_norm is None else self._head(model, model.forward_features(images))

    def _head(self, model: Any, features: Any) -> Tensor:
        if self.probe_norm is None:
            return model.forward_head(features)
        return model.get_classifier()(self.probe_norm(model.forward_head(features, pre_logits=True)))

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; a frozen backbone and averaged weights stay in evaluation mode."""
        super().train(mode)
        if self.strategy.frozen:
            self.model.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        if self.average is not None and self.config.ema is not None:
            ema_(self.average, self.model, self.config.ema, broken)
            for own, source in zip(self.average.buffers(), self.model.buffers(), strict=True):
                own.copy_(source)

    def batch_statistics(self) -> tuple[str, ...]:
        """By batch normalisation, of a backbone that is not frozen or before a probe's head; by flooding, which reads
        the mean loss of the step; by thresholds that follow the images of the step."""
        unlabelled = self.config.unlabelled
        found = {
            f"batch normalisation of {self.architecture}": normalises(self.model) and not self.strategy.frozen,
            "batch normalisation before the head": self.probe_norm is not None,
            "flooding": self.config.flood is not None,
            "adaptive thresholds": unlabelled is not None and unlabelled.threshold.crosses,
        }
        return tuple(name for name, there in found.items() if there)

    def symptoms(self) -> list[Symptom]:
        return [] if self.consistency is None else self.consistency.symptoms()

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        # not to 1-D tensors, tokens or positions (MAE's fine-tuning)
        return parameter.ndim > 1 and not name.endswith(
            (".bias", "cls_token", "pos_embed", "reg_token", "dist_token", ".latent")
        )

    def lr_scale(self, name: str) -> float:
        name = name.removeprefix("model.")
        if name not in self.layers or name.startswith(self.new):
            return 1.0
        return self.strategy.rate(self._below_the_head(self.layers[name]))

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        if not self.waiting:
            return
        for name, parameter in self.model.named_parameters():
            start = self.strategy.starts(self._below_the_head(self.layers[name]))
            if progress.epoch < start and not name.startswith(self.new):
                yield parameter

    def _below_the_head(self, layer: int) -> int:
        return max(self.layers.values()) - layer

    def _waiting(self) -> Iterator[tuple[nn.Module, float]]:
        """Modules with parameters of their own that are frozen at first, and the epochs in which they are unfrozen."""
        for prefix, module in self.model.named_modules():
            own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if own and prefix and (start := self.strategy.starts(self._below_the_head(self.layers[own[0]]))) > 0:
                yield module, start

    @torch.no_grad()
    def exported(self) -> dict[str, Tensor]:
        """The state of the plain timm model: averaged where there is an average, low-rank products added, a probe's
        normalisation folded into its head."""
        state = self.strategy.merged(self.model if self.average is None else self.average)
        norm, prefix = self.probe_norm, head_prefixes(self.model)[0]
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var + norm.eps).rsqrt()
            weight = state[f"{prefix}weight"]
            state[f"{prefix}bias"] = state[f"{prefix}bias"] - weight @ (norm.running_mean * scale)
            state[f"{prefix}weight"] = weight * scale
        return state

    def bare(self) -> dict[str, Tensor]:
        """The state of the plain timm model without its head."""
        heads = head_prefixes(self.model)
        return {name: tensor for name, tensor in self.exported().items() if not name.startswith(heads)}

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        classes, width = made.classes, self.model.num_features
        config = timm_config(self.architecture, self.arguments, width, prepared, len(classes), classes)
        loading = self.family.loading(self.architecture, self.arguments, headed=True)
        write_export(folder, self.exported(), config, classifier_card(made, loading))
        return True
