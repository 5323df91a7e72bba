"""The recipe: data, length, optimizer, machine. Each stage adds the fields of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.data.source import AnyData, SourceConfig
from unlabeled.data.view.views import View
from unlabeled.paths import UserPath
from unlabeled.pretrain.method import Progress
from unlabeled.processes import cores_each
from unlabeled.recipe.free import FREE
from unlabeled.train.optimizer import AnyOptim, Optim
from unlabeled.train.optimizers import adamw
from unlabeled.train.tracker import tracker_names
from unlabeled.train.watch import Watching

ELSEWHERE = "evaluate.data"
Exchange = Literal["float32", "bf16"]
if TYPE_CHECKING:
    Tracker = str
else:
    Tracker = Literal[tuple(tracker_names())]


class Train(BaseModel, frozen=True, extra="forbid"):
    """How long, how many at once, how precisely."""

    epochs: float = Field(100, gt=0, allow_inf_nan=False, description="passes over the data")
    batch_size: int = Field(
        256, ge=1, description="effective batch: per process x processes x accumulation, whatever the machine"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision; no = float32")
    tf32: bool = Field(
        False,
        description="on a GPU, multiply float32 matrices as TensorFloat-32: several times faster, products are rounded "
        "to 11 bits; nothing to precision bf16 and fp16",
    )
    gradient_exchange: Exchange = Field(
        "float32", description="type in which processes average gradients: bf16 sends half as much, and rounds"
    )


def spare_cores() -> int:
    """Cores of this machine for each process's workers: all but the one that feeds the device, at least 1."""
    return max(1, cores_each() - 1)


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
        description="processes that make samples; 0 = the main process does. Unless set, the cores of the machine "
        "over its processes, but for one each; `doctor` says how many a GPU needs",
    )
    views: Literal["worker", "device"] = Field(
        "worker",
        description="where crops are cut: worker = by the processes that make samples; device = in batches on the "
        "device, to which workers send each picture whole: the same crops, for GPUs that wait for many crops of small "
        "pictures (data.cache)",
    )
    accumulate: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        1,
        description="micro-batches per step and process, to save memory; auto = 1, and where a run goes on with fewer "
        "processes as many as keep a micro-batch no larger than it was",
    )
    checkpoint_activations: Literal["blocks"] | Annotated[int, Field(ge=1, strict=True)] | None = Field(
        None,
        description="to save memory, compute blocks of the network a second time in the backward pass instead of "
        "keeping what they computed: blocks = every block, n = every n-th; null = none. Same result, slower steps",
    )
    compile: bool = Field(
        False,
        description="compile blocks, heads, losses and colours, each by itself (slow start, faster steps). Rounding "
        "differs, and drop path and dropout draw other numbers",
    )
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
    page: bool = Field(
        True,
        description="write index.html, a page that shows how the run goes, into the output folder while it goes on",
    )
    trackers: tuple[Tracker, ...] = Field(
        (), description="also log to these, any number at once; each needs the Python package of its name"
    )
    max_skipped: int = Field(20, ge=1, description="steps in a row with a non-finite loss or gradient before stopping")
    timeout: float = Field(
        600,
        gt=0,
        allow_inf_nan=False,
        description="seconds to wait for a worker, half of what a process waits for another",
    )

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step and process; 1 where that is `auto` and no run has found another number."""
        return 1 if self.accumulate == "auto" else self.accumulate


class Recipe(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields that all recipes have."""

    successor: ClassVar[str | None] = None  # the field that begins a new run with what another has learnt
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the run; its output is runs/NAME")
    seed: int = Field(0, ge=0, lt=2**32, description="decides initialisation, order, crops and masks")
    data: AnyData = Field(description="the pictures")
    train: Train = Field(Train(), description="length, batch and precision")
    optim: AnyOptim = Field(adamw.Config(), description="optimizer and schedule")
    run: Annotated[Run, FREE] = Field(Run(), description="machine and output; cannot change the result")

    @field_validator("optim")
    @classmethod
    def _warmup_fits(cls, optim: Optim, info: ValidationInfo) -> Optim:
        train = info.data.get("train")
        if train is not None and optim.warmup_epochs > train.epochs:
            raise ValueError(
                f"warmup_epochs {optim.warmup_epochs} is longer than the run of {train.epochs} epochs: lower it, "
                f"such as optim.warmup_epochs={train.epochs / 10:.2g}, a tenth of the run"
            )
        return optim

    @model_validator(mode="after")
    def _schedule_has_its_score(self) -> Recipe:
        schedule = self.optim.schedule
        if schedule.lowering is not None and self.watching is None:
            raise ValueError(
                f"optim.schedule {schedule.name} needs a score to watch: set watch: {{every: STEPS}} (in fine-tuning)"
            )
        return self

    @model_validator(mode="after")
    def _device_can_cut(self) -> Recipe:
        kept = ((f"{field}.rand_augment", view.rand_augment) for field, view in self.views.items())
        field, found = next((one for one in kept if one[1] is not None), ("", None))
        if self.run.views == "device" and found is not None:
            raise ValueError(
                f"run.views=device cannot do what {field}={found!r} asks for: Pillow changes crops in workers. Set "
                f"run.views=worker, or {field}=null"
            )
        return self

    @property
    def watching(self) -> Watching | None:
        """Early stopping; None = the last weights count."""
        return None

    @property
    def evaluated_every(self) -> int | None:
        """Steps between evaluations; None = only at the end."""
        return None

    @property
    def elsewhere(self) -> SourceConfig | None:
        """The labelled images that pretraining is judged by, at ELSEWHERE; None = they are those of `data`."""
        return None

    @property
    def crop_unit(self) -> int:
        """The sides of crops are multiples of this, pixels."""
        return 1

    def replaces(self, other: Recipe) -> bool:
        """Whether it learns the same as another recipe on other terms, so that a user may take it instead."""
        return False

    @property
    @abstractmethod
    def views(self) -> dict[str, View]:
        """Every view of the images, by its field."""

    def bound_to_length(self, old: Progress, new: Progress) -> Iterator[str]:
        """Fields beside `optim` and `watch` that, at the beginning, would be others in a longer run, with why."""
        return iter(())

    @property
    def output(self) -> str:
        return self.run.output or f"runs/{self.name}"
