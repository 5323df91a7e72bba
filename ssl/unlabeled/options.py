"""What commands have in common: options that are checked like recipes, and the machine's cores."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unlabeled.errors import UserError

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


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
