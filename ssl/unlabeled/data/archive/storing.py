"""How prepared pictures are stored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Settings(BaseModel, frozen=True, extra="forbid"):
    """How images are stored."""

    short_side: int = Field(256, ge=16, description="pixels; larger images are made smaller, none larger")
    format: Literal["raw", "jpeg"] = Field("raw", description="raw = .npy, read fastest; jpeg = an eighth of the space")
    quality: int = Field(92, ge=1, le=100, description="of a JPEG")
    shard: int = Field(1024, ge=1, description="images per tar")
