"""The base of masks that hide as many units in every crop."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field
from typing_extensions import Self

from unlabeled.data.mask import Grid, Mask, Rounding


def hidden_count(units: int, ratio: float, rounding: Rounding | None) -> int:
    """Number of `units` that a mask of a fixed ratio hides. Methods differ in rounding and in the floats they multiply.

    Args:
        units: N, how many there are.
        ratio: r, share to hide.
        rounding: `floor_visible` keeps floor(N (1 - r)) (MAE, also when None), `ceil_hidden` hides ceil(N r) (SimMIM's
            `MaskGenerator`), `floor_hidden` hides floor(N r) (random masks of iBOT).
    """
    if rounding == "ceil_hidden":
        return math.ceil(units * ratio)
    return int(units * ratio) if rounding == "floor_hidden" else units - int(units * (1 - ratio))


class FixedMask(Mask, frozen=True, extra="forbid"):
    """A mask that hides as many units in every crop."""

    equal_counts: ClassVar[bool] = True
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the units to hide, between 0 and 1")
    rounding: Rounding | None = Field(
        None,
        description="a share of N units that is no whole number: keep floor(N (1 - ratio)) (floor_visible: MAE), hide "
        "ceil(N ratio) (ceil_hidden: SimMIM) or floor(N ratio) (floor_hidden: iBOT); null = the method's own",
    )

    def hidden(self, units: int) -> int:
        """Number of `units` that are hidden."""
        return hidden_count(units, self.ratio, self.rounding)

    def rounded(self, rounding: Rounding) -> Self:
        """The same mask by a method's own rounding, where its recipe leaves that open."""
        return self if self.rounding else self.model_copy(update={"rounding": rounding})

    def must_leave_both(self, units: int, size: Grid) -> None:
        """Raise ValueError when all units of a crop would be hidden, or none."""
        hidden = self.hidden(units)
        if not 0 < hidden < units:
            share = "every unit" if hidden else "no unit"
            raise ValueError(
                f"a mask ratio of {self.ratio} hides {share} of a {size[0]}x{size[1]} crop, which has {units}. "
                "Choose a ratio nearer to 0.5, a larger crop or smaller units"
            )
