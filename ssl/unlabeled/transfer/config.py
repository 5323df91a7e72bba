"""What a fine-tuning may be told: the recipe's `task:` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import Interpolation, View
from unlabeled.transfer.lora import Lora
from unlabeled.transfer.sweep import Sweep

Mode = Literal["frozen", "linear", "sweep", "attentive", "lora", "full", "differential_lr", "gradual", "retrain"]
FROZEN: tuple[Mode, ...] = ("frozen", "linear", "sweep", "attentive", "retrain")


class ClassifyConfig(BaseModel, frozen=True, extra="forbid"):
    """Modes: `frozen` trains a head on a fixed backbone, `linear` is MAE's probe (a BatchNorm without affine in front),
    `sweep` many heads at once, of several rates and kinds of features (DINO's, iBOT's and DINOv2's probes),
    `attentive` a cross-attention pooling and a head, `lora` low-rank additions to attention and MLP and a head, `full`
    everything at one rate, `differential_lr` gives the backbone its own rates by depth, `gradual` wakes one layer after
    another from the top, `retrain` gives a classifier that was fine-tuned before a new head and leaves the rest."""

    mode: Mode = Field("full", description="which parts learn, and how fast")
    pool: Literal["cls", "mean", "mean_max", "attention"] = Field(
        "cls",
        validate_default=True,
        description="class token, mean of the patches (CNN), half the sum of their mean and maximum, or a learnt query "
        "that attends to all tokens (attentive always does this; retrain keeps what the classifier has); unless set, "
        "as the encoder is evaluated",
    )
    view: View = Field(
        View(size=224, scale=(0.08, 1.0)),
        description="the crop trained on; its size, unless set the encoder's, is evaluated too",
    )
    crop_pct: float = Field(
        0.875,
        gt=0,
        le=1,
        description="centre share of the resized picture used in evaluation; unless set, the encoder's",
    )
    interpolation: Interpolation | None = Field(
        None,
        description="how pictures are resized in evaluation; null = as the view's, or the encoder's where it has none",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixing: Mixing = Field(Mixing(), description="mixup and CutMix of neighbours in the batch; null = neither")
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
    sweep: Sweep = Field(Sweep(), validate_default=True, description="which heads are trained (sweep)")
    repeats: int = Field(
        1,
        ge=1,
        description="crops of each picture in a batch, of so many times fewer pictures (repeated augmentation)",
    )
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

    @field_validator("mixing", mode="before")
    @classmethod
    def _none_is_off(cls, mixing: Any) -> Any:
        return Mixing() if mixing is None else mixing

    @field_validator("pool")
    @classmethod
    def _attentive_attends(cls, pool: str, info: ValidationInfo) -> str:
        if info.data.get("mode") != "attentive":
            return pool
        if pool not in ("cls", "attention"):
            raise ValueError(f"attentive pools by attention: leave pool out, found {pool}")
        return "attention"

    @field_validator("sweep")
    @classmethod
    def _heads_are_plain(cls, sweep: Sweep, info: ValidationInfo) -> Sweep:
        if info.data.get("mode") != "sweep":
            return sweep
        if info.data.get("pool") == "attention":
            raise ValueError("a sweep's heads read what is there: expected task.pool cls or mean, found attention")
        unused = [name for name in ("flood", "ema") if info.data.get(name) is not None]
        if unused:
            raise ValueError(f"a sweep's heads know no {' or '.join(unused)}: set task.{unused[0]}=null")
        return sweep

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
