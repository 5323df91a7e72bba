"""The crops that a method expects of a view, compared with a recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlabeled.data.mask import Rounding, with_equal_counts
from unlabeled.data.view.views import View


@dataclass(frozen=True)
class Crops:
    """The crops that a method expects of one of its views.

    Attributes:
        count: crops of an image, 1 or 2; None = any number.
        masked: whether patches are hidden.
        equal_counts: whether every crop must hide as many.
        rounding: of the masked share, where the recipe leaves it open.
        like: an earlier view, whose crops have the same size.
    """

    count: int | None = 1
    masked: bool = False
    equal_counts: bool = False
    rounding: Rounding | None = None
    like: str | None = None

    def fitted(self, method: str, name: str, view: View, others: Mapping[str, Any]) -> View:
        """The view, its mask rounded as the method does.

        Args:
            method: in words.
            name, view: of a field of the recipe.
            others: fields before it.

        Raises:
            ValueError: its crops are not what the method expects.
        """
        kind, mask = "masked" if self.masked else "whole", view.mask
        if self.count is None and self.masked != (mask is not None):
            raise ValueError(f"{method} needs {kind} {name} crops, found mask {mask}")
        if self.count is not None and (self.count, self.masked) != (view.count, mask is not None):
            crops = f"one {kind} crop" if self.count == 1 else f"two {kind} crops"
            raise ValueError(f"{method} needs {crops}, found count {view.count} and mask {mask}")
        other = others.get(self.like or "", view)
        if other.shape != view.shape:
            raise ValueError(f"expected {self.like} and {name} of one size, found {other.shape} and {view.shape}")
        if mask is not None and self.equal_counts and not mask.equal_counts:
            raise ValueError(
                f"{method} needs a mask that hides as many patches in every crop, found mask {mask.name}. "
                f"Use {with_equal_counts()}."
            )
        if mask is None or self.rounding is None:
            return view
        return view.model_copy(update={"mask": mask.rounded(self.rounding)})
