"""The recipe section `tasks`: which classes come when, by which strategy they are learnt, and what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from unlabeled.errors import UserError
from unlabeled.incremental.memory import Memory
from unlabeled.incremental.protocol import class_order, increments, known_before, listed_order
from unlabeled.incremental.strategy import STRATEGIES, Strategy
from unlabeled.recipe.free import FREE


class Protocol(NamedTuple):
    """Which classes come when.

    Attributes:
        order: [C] original number of each new class.
        sizes: classes of each task.
    """

    order: np.ndarray
    sizes: list[int]

    def known(self, task: int) -> int:
        """Classes known at the end of a task."""
        return sum(self.sizes[: task + 1])

    def old(self, task: int) -> int:
        """Classes known before a task."""
        return known_before(self.sizes)[task]


class Tasks(BaseModel, frozen=True, extra="forbid"):
    """Classes come in tasks; after each, one classifier names all classes seen so far."""

    init: int | None = Field(ge=1, description="classes of the first task; null = all, in a single task")
    step: int = Field(1, ge=1, description="classes of each later task; the last may have fewer")
    strategy: Annotated[Strategy, STRATEGIES] = Field(description="how classes are learnt beside those that are known")
    memory: Memory = Field(Memory(), description="images of earlier tasks that later ones learn from")
    order: tuple[str, ...] | None = Field(None, description="all classes in the order in which they come; null = drawn")
    order_seed: int = Field(1993, ge=0, lt=2**32, description="of the order that is drawn; 1993 in published tables")
    backbone: Literal["always", "first"] = Field(
        "always", description="when the backbone learns what task.strategy lets it: in every task, or the first alone"
    )
    bounds: Annotated[bool, FREE] = Field(
        False, description="also train all classes at once (upper bound), and by plain fine-tuning (lower bound)"
    )

    def protocol(self, classes: Sequence[str]) -> Protocol:
        """Which of the classes come when. Raises UserError where the order or the sizes do not fit them."""
        self.memory.check(len(classes))
        if self.order is None:
            order = class_order(len(classes), self.order_seed)
        else:
            if strange := [name for name in self.order if name not in classes]:
                raise UserError(
                    f"tasks.order names {strange[0]!r}, which is no class of data.train; expected each of its "
                    f"{len(classes)}, such as {classes[0]!r}"
                )
            order = listed_order(len(classes), [classes.index(name) for name in self.order])
        return Protocol(np.array(order), increments(len(classes), self.init or len(classes), self.step))
