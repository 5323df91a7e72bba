"""A view once more: the same boxes and flips at another size, without colours and masks."""

from __future__ import annotations

from pydantic import Field

from unlabeled.data.view.views import Size, View, shape_of

GEOMETRY = ("scale", "ratio", "single_shot", "interpolation", "flip")


class Twin(View, frozen=True):
    """A crop that is cut as that of another view. No recipe has one: methods add them to its views."""

    of: int = Field(ge=0, description="number of that view, which has one crop")

    @property
    def again(self) -> int | None:
        return self.of


def twin(view: View, number: int, factor: float) -> Twin:
    """The twin of a view of one crop with this number, its sides `factor` times as long."""
    sizes = tuple((share, _longer(size, factor)) for share, size in view.sizes)
    geometry = {name: getattr(view, name) for name in GEOMETRY}
    return Twin(of=number, size=_longer(view.size, factor), sizes=sizes, **geometry)


def _longer(size: Size, factor: float) -> Size:
    height, width = (round(side * factor) for side in shape_of(size))
    return (height, width)
