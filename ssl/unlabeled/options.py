"""What commands have in common: options that are checked like recipes, and the machine's cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.data.source import SourceConfig
    from unlabeled.export import Preprocessing

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], **fields: Any) -> M:
    """A model made of options.

    Raises:
        UserError: what the model complains about, by the options' names.
    """
    try:
        return model(**fields)
    except ValidationError as error:
        complaints = []
        for one in error.errors():
            option = "-".join(map(str, one["loc"][:1])).replace("_", "-")
            complaints.append(f"--{option}: {one['msg']}, found {one['input']}" if option else one["msg"])
        raise UserError("; ".join(complaints)) from error


def pictures(path: str, prepared: Preprocessing, side: int, **splits: str) -> SourceConfig:
    """A command's pictures, scaled and normalised as an export was trained.

    Args:
        path: a folder, a tar, a glob of tars, or `shapes`.
        prepared: the export's.
        side: of drawn shapes, pixels.
        splits: subfolders, `train` and `val`.

    Raises:
        UserError: an option does not fit.
    """
    from unlabeled.data.shapes import Shapes
    from unlabeled.data.sources import Files

    how: dict[str, Any] = {"mean": tuple(prepared.mean), "std": tuple(prepared.std)}
    if path == "shapes":
        return checked(Shapes, size=side, **how)
    return checked(Files, path=path, value_range=prepared.value_range, **splits, **how)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
