"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from unlabeled.train.optimizer import Groups, Optim, Unit


class Config(Optim, frozen=True, extra="forbid"):
    """AdamW, fused where the device has it."""

    gentle: ClassVar[float | None] = 1e-4
    name: Literal["adamw"] = "adamw"
    betas: tuple[Unit, Unit] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False, description="added to the root of the second moment")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        devices = {p.device.type for group in groups for p in group["params"]}
        fused = devices <= {"cuda", "cpu", "mps", "xpu"} and len(devices) == 1
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=fused)
