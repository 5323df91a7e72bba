"""The contract of class-incremental strategies: what is learnt when classes come in tasks, and what passes from one
task to the next. Kinds are the files of `strategies/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.registry import ByFile


class Coming(NamedTuple):
    """The task that comes now.

    Attributes:
        number: from 0.
        tasks: how many there are.
        old: classes known before.
        new: classes that come; labels are 0 .. old + new - 1.
        counts: [old + new] int64 images of each class in this task's source, memory included.
        seed: of the recipe; what a strategy draws follows from (seed, number) alone.
    """

    number: int
    tasks: int
    old: int
    new: int
    counts: Tensor
    seed: int

    @property
    def classes(self) -> int:
        """Classes known at the end of the task."""
        return self.old + self.new

    @property
    def remembered(self) -> bool:
        """Whether images of old classes are among those of the task."""
        return bool(self.counts[: self.old].sum())


class Seen(NamedTuple):
    """What a network makes of a batch.

    Attributes:
        features: [B, D] pooled, before the head; of several extractors side by side, oldest first.
        logits: [B, classes that it knows].
        maps: [B, C, h, w] of its stages, where the strategy asks for them.
        auxiliary: what the second head says, where there is one.
        numbers: [B] int64 of the images in the training source; None where they are not those of a batch.
    """

    features: Tensor
    logits: Tensor
    maps: tuple[Tensor, ...] = ()
    auxiliary: Tensor | None = None
    numbers: Tensor | None = None


class Kept(NamedTuple):
    """All that passes from one task to the next beside the classifier.

    Attributes:
        tensors: the strategy's own, by name: importances, means, Gram matrices, logits.
        memory: [m] int64 numbers of images in the training source, class by class, best first.
    """

    tensors: Mapping[str, Tensor]
    memory: Tensor


class After(NamedTuple):
    """What a network knows at the end of a task, of images cropped as in evaluation, in the order of their numbers.

    Attributes:
        features: [n, D] float64, of the task's own images and then of the memory it began with.
        labels: [n] int64.
        logits: [n, classes] float32.
        numbers: [n] int64 in the training source.
        parameters: all that learn, by name; the head's are `HEAD` and what follows.
        mirrored: features [n, D] of the same images, flipped.
        importances: mean over the images of the squared gradient of -log p(label), one image at a time, in evaluation
            mode, by name of the parameter, float64.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor
    numbers: Tensor
    parameters: Mapping[str, Tensor]
    mirrored: Callable[[], Tensor]
    importances: Callable[[], dict[str, Tensor]]


class Balanced(BaseModel, frozen=True, extra="forbid"):
    """Training of the head alone, at the end of a task, on equally many images of every class."""

    epochs: float = Field(gt=0, description="passes over them")
    base_lr: float = Field(gt=0, description="learning rate per 256 images of a batch; it falls to 0 as a cosine")
    anew: bool = Field(False, description="whether the head is drawn again before")
    temperature: float = Field(1.0, gt=0, description="by which logits are divided")


HEAD = "head."  # how the names of the head's parameters begin


class Strategy(BaseModel, ABC, frozen=True, extra="forbid"):
    """How classes are learnt in tasks. Its fields are what recipes set; `name` is the name of its file.

    Attributes:
        trains: whether steps are taken; where not, features alone are read, once.
        teacher: whether the classifier of the task before sees each batch, frozen.
        maps: whether maps of the stages are read.
        extends: whether each task adds an extractor, and those before it are frozen.
        spaces: extractors that learn side by side.
        draws: images drawn from memory for each new one of a batch, in parts that follow the new ones: () = memory is
            shuffled among them.
        remembers: whether it needs a memory.
        reads_first: whether new rows of its head are drawn from the task's features, see `begun`.
        own_head: whether its head, of `head`, takes the place of the classifier's linear one.
        linear: whether the result is the linear head on the features, and so a classifier that timm loads; see `rows`.
    """

    trains: ClassVar[bool] = True
    teacher: ClassVar[bool] = False
    maps: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    spaces: ClassVar[int] = 1
    draws: ClassVar[tuple[int, ...]] = ()
    remembers: ClassVar[bool] = False
    reads_first: ClassVar[bool] = False
    own_head: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    name: str

    @property
    def balanced(self) -> Balanced | None:
        """The training of the head that follows a task with old classes; None = there is none."""
        return None

    def head(self, width: int, task: Coming, before: nn.Module | None) -> nn.Module:
        """A head [B, width] -> [B, classes]: here linear, with the old rows of the one `before`.

        `begun` follows it where the strategy draws its new rows from features.
        """
        head = nn.Linear(width, task.classes)
        nn.init.zeros_(head.bias)
        if isinstance(before, nn.Linear):
            with torch.no_grad():
                head.weight[: task.old, : before.in_features] = before.weight
                head.bias[: task.old] = before.bias
        return head

    def is_ordinary(self, task: Coming) -> bool:
        """Whether a task is ordinary fine-tuning of the classifier: here the first."""
        return task.number == 0 and not self.own_head

    @property
    def reads_last(self) -> bool:
        """Whether it learns from what the task's images look like at its end, see `learnt`."""
        return type(self).learnt is not Strategy.learnt

    def begun(self, head: nn.Module, features: Tensor, labels: Tensor, task: Coming) -> None:
        """Change a new head by the features [n, D] and labels [n] of the task's images, before the first step."""

    def auxiliary(self, width: int, task: Coming) -> nn.Module | None:
        """A second head on the features of the newest extractor, for the loss alone; None = there is none."""
        return None

    def resting(self, name: str, task: Coming) -> bool:
        """Whether a parameter of the head or extractors does not learn in this task."""
        return False

    def rate(self, space: int) -> float:
        """Factor on the learning rate of the extractor of this number, of those that learn side by side."""
        return 1.0

    @abstractmethod
    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Named terms of the loss, each a mean over the images; their sum is trained.

        Args:
            now: of the network that learns.
            before: of that of the task before, on the same crops; None in the first task.
            labels: [B] int64.
        """

    def penalty(self, parameters: Mapping[str, Tensor], task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Named terms of the loss that depend on the weights alone."""
        return {}

    def ended(self, head: nn.Module, task: Coming) -> None:
        """Change the head after the last step of a task, before anything is read of the network."""

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """`Kept.tensors` at the end of a task; `kept` holds those of the task before, and the new memory."""
        return {}

    def scores(self, seen: Seen, kept: Kept) -> Tensor:
        """Scores [B, classes] by which images are classified: here the logits."""
        return seen.logits

    def rows(self, kept: Kept) -> Tensor | None:
        """Rows [classes, D] of a linear head without bias that names the same classes as `scores`, to be exported
        where `linear` does not hold; None = no linear head does."""
        return None

    def plan(self, tasks: int) -> str:
        """A line of the plan about a protocol of so many tasks; empty = there is nothing to say."""
        return ""


class Closed(Strategy, ABC, frozen=True, extra="forbid"):
    """Classes that are learnt from features in closed form: no step is taken."""

    trains: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    def is_ordinary(self, task: Coming) -> bool:
        return True

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        raise NotImplementedError(f"{self.name} takes no steps of its own")


STRATEGIES = ByFile("unlabeled.incremental.strategies", Strategy)
