"""What a recipe may say. `run` holds what cannot change the result; everything else can."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.data.sources.mixture import Kinds, Mixture
from unlabeled.errors import UserError
from unlabeled.evaluate.evaluation import Evaluation
from unlabeled.launch.options import cores
from unlabeled.paths import UserPath
from unlabeled.pretrain.methods import config_union
from unlabeled.recipe import fields, load
from unlabeled.train.optim import AdamW, OptimConfig
from unlabeled.train.watch import Watching
from unlabeled.transfer.config import ClassifyConfig

DataConfig = Annotated[Kinds | Mixture, Field(discriminator="name")]
Tracker = Literal["tensorboard", "mlflow"]

# fields that cannot change what is learnt: a run may be resumed with others
FREE_FIELDS = (
    "run",
    "data.allow_overlap",
    "data.path",
    "data.val_path",
    "data.root",
    "data.cache",
    "data.classes",  # which classes there are, and in which order, is part of the pictures' fingerprint
    "data.max_bad_fraction",
    "evaluate",
)


class Train(BaseModel, frozen=True, extra="forbid"):
    """How long, how many at once, how precisely."""

    epochs: float = Field(100, gt=0, allow_inf_nan=False, description="passes over the data")
    batch_size: int = Field(
        256, ge=1, description="effective batch: per process x processes x accumulation, whatever the machine"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision; no = float32")


def spare_cores() -> int:
    """Cores of this machine for each process's workers: all but the one that feeds the device, 1 to 8."""
    return min(8, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


class Run(BaseModel, frozen=True, extra="forbid"):
    """The machine and the output: nothing here changes the result, rounding aside."""

    output: UserPath | None = Field(None, description="output folder; null = runs/NAME")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto = an accelerator if there is one")
    threads: int | None = Field(
        None, ge=1, description="CPU threads per process; null = torch's choice. Small models are fastest with 1"
    )
    workers: int = Field(
        default_factory=spare_cores,
        ge=0,
        description="processes that make samples; 0 = the main process does. Unless set, the cores that are left to a "
        "process, at most 8",
    )
    accumulate: int = Field(1, ge=1, description="micro-batches per step and process, to save memory")
    compile: bool = Field(False, description="compile encoder and decoder (slow start, faster steps)")
    log_every: int = Field(50, ge=1, description="steps between logged lines")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints to keep")
    keep_every: int | None = Field(None, ge=1, description="also keep checkpoints whose step this divides")
    pictures_every: int | None = Field(
        None,
        ge=1,
        description="steps between pictures of what is learnt from (crops, reconstructions), as PNGs and in trackers; "
        "null = where pretraining is evaluated. The end of the run has one too",
    )
    trackers: tuple[Tracker, ...] = Field((), description="also log to tensorboard, mlflow, or both")
    max_skipped: int = Field(20, ge=1, description="steps in a row with a non-finite loss or gradient before stopping")
    timeout: float = Field(
        600,
        gt=0,
        allow_inf_nan=False,
        description="seconds to wait for a worker, half of what a process waits for another",
    )


class _Recipe(BaseModel, frozen=True, extra="forbid"):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the run; its output is runs/NAME")
    seed: int = Field(0, ge=0, lt=2**32, description="decides initialisation, order, crops and masks")
    data: DataConfig = Field(description="the pictures")
    train: Train = Field(Train(), description="length, batch and precision")
    optim: OptimConfig = Field(AdamW(), description="optimizer and schedule")
    run: Run = Field(Run(), description="machine and output; cannot change the result")

    @field_validator("optim")
    @classmethod
    def _warmup_fits(cls, optim: Any, info: ValidationInfo) -> Any:
        train = info.data.get("train")
        if train is not None and optim.warmup_epochs > train.epochs:
            raise ValueError(f"warmup_epochs {optim.warmup_epochs} is longer than the run of {train.epochs} epochs")
        return optim

    @model_validator(mode="after")
    def _plateau_is_watched(self) -> _Recipe:
        if self.optim.schedule.name == "plateau" and getattr(self, "watch", None) is None:
            raise ValueError("optim.schedule plateau needs a score to watch: set watch: {every: STEPS} (finetune.py)")
        return self

    @property
    def output(self) -> str:
        """The output folder."""
        return self.run.output or f"runs/{self.name}"


class Scoring(BaseModel, frozen=True, extra="forbid"):
    """When fine-tuning is scored on `data.val`; it always is at the end."""

    every: int | None = Field(None, ge=1, description="steps between scores; null = only at the end")


class FinetuneRecipe(_Recipe, frozen=True, extra="forbid"):
    """A recipe for finetune.py."""

    encoder: UserPath = Field(
        description="the backbone: an export folder, METHOD:FILE.pth of an official release (mae:, simmim:, mocov3:, "
        "dino:, ibot:, dinov2:), or timm:NAME; scratch:FOLDER or scratch:timm:NAME for an architecture with random "
        "weights"
    )
    adapt: tuple[Literal["size", "channels"], ...] = Field(
        (),
        description="what of the encoder may be fitted to the pictures: size (its positions are resampled), channels "
        "(the first layer is summed or repeated)",
    )
    task: ClassifyConfig = Field(ClassifyConfig(), description="what to learn, and which parts of the backbone learn")
    watch: Watching | None = Field(
        None, description="a score that decides which weights are kept, when rates fall, when to stop; null = none does"
    )
    evaluate: Scoring = Field(Scoring(), description="when to score; null = only at the end")

    @field_validator("evaluate", mode="before")
    @classmethod
    def _at_the_end(cls, given: Any) -> Any:
        return Scoring() if given is None else given

    @field_validator("task")
    @classmethod
    def _view_suits_the_pictures(cls, task: ClassifyConfig, info: ValidationInfo) -> ClassifyConfig:
        if "data" in info.data:
            task.view.must_suit(info.data["data"].channels)
        return task

    @model_validator(mode="after")
    def _heads_are_chosen_and_do_not_meet(self) -> FinetuneRecipe:
        task, watch, optim = self.task, self.watch, self.optim
        heads = len(task.sweep.heads(task.pool))
        if task.mode != "sweep" or heads == 1:
            return self
        if watch is None:
            raise ValueError(
                f"task.mode sweep trains {heads} heads and must be told which pictures choose one: set "
                "watch: {every: STEPS, hold_out: 0.1}; hold_out: 0 chooses on data.val, as published results do"
            )
        if watch.metric == "nll":
            raise ValueError("heads are compared by how often they are right: set watch.metric=accuracy")
        if optim.clip is not None and optim.clip_by != "tensor":
            raise ValueError(
                f"optim.clip {optim.clip:g} by {optim.clip_by} would make {heads} heads share one norm: set "
                "optim.clip=null or optim.clip_by=tensor"
            )
        return self


def _channels_match(method: Any, info: ValidationInfo) -> Any:
    data = info.data.get("data")
    if data is not None and method.encoder.channels != data.channels:
        found, given = method.encoder.channels, data.channels
        raise ValueError(
            f"encoder.channels is {found}, the pictures have {given} (the values of data.mean and data.std). Set "
            f"method.encoder.channels={given}, or give mean and std {found} values each"
        )
    return method


def pretrain_recipe() -> Any:
    """The schema of recipes for pretrain.py, with every method there is."""
    return create_model(
        "PretrainRecipe",
        __base__=_Recipe,
        __doc__="A recipe for pretrain.py.",
        __validators__={"channels_match": field_validator("method")(_channels_match)},
        method=(config_union(), Field(description="what is learnt and from what")),
        init=(
            UserPath | None,
            Field(None, description="export folder to go on from, encoder and heads; null = from scratch"),
        ),
        evaluate=(
            Evaluation | None,
            Field(None, description="kNN and linear probes on labelled pictures while it trains; null = none"),
        ),
    )


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """A recipe of either program, told apart by its fields.

    Raises:
        UserError: it is neither, or something in it is wrong.
    """
    names = fields(path, overrides)
    if "method" in names or not names:  # without any, loading says what is wrong
        return load(pretrain_recipe(), path, overrides)
    if names & {"encoder", "task"}:
        return load(FinetuneRecipe, path, overrides)
    raise UserError(
        f"{path} is no recipe: expected `method` (for pretrain.py) or `encoder` (for finetune.py), "
        f"found {', '.join(sorted(names))}"
    )


def is_free(path: str) -> bool:
    """Whether a field, by dotted path, cannot change the result."""
    return any(f"{path}.".startswith(f"{free}.") for free in FREE_FIELDS)
