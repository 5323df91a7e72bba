"""A view once more: the same boxes and flips at another size, without colours and masks."""

from __future__ import annotations

from pydantic import Field

from unlabeled.data.view.views import View

GEOMETRY = ("scale", "ratio", "single_shot", "interpolation", "flip")


class Twin(View, frozen=True):
    """A crop that is cut as that of another view. No recipe has one: methods add them to its views."""

    of: int = Field(ge=0, description="number of that view, which has one crop")

    @property
    def again(self) -> int | None:
        return self.of


def twin(view: View, number: int, factor: float) -> Twin:
    """The twin of a view of one crop with this number, its sides `factor` times as long."""
    height, width = (round(side * factor) for side in view.shape)
    return Twin(of=number, size=(height, width), **{name: getattr(view, name) for name in GEOMETRY})
