"""Weights & Biases: a run of the run's name in the project WANDB_PROJECT, else `unlabeled`; files in the run's logs.

A run that goes on after a step goes on as the same run there. Nothing is taken back there: steps between that one and
the end of a killed run are sent twice, with the same values; `step` is the axis of all charts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from unlabeled.errors import UserError
from unlabeled.train.tracker import Tracked, Tracker

MEND = "Run `wandb login`, or set WANDB_MODE=offline to keep the run here (`wandb sync` sends it later)"


class WeightsAndBiases(Tracker):
    """One run; its other settings are those of `WANDB_*` and `wandb`'s own files. It never asks for a key."""

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        self._wandb, settings = wandb, wandb.setup().settings
        online = settings.mode in ("online", "run", "shared", None)
        if online and not wandb.login(prompt=False, verify=False):
            raise UserError("there is no key of an account on this machine: log in, or set WANDB_MODE=offline")
        tracked.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=settings.project or "unlabeled",
            name=os.environ.get("WANDB_NAME", tracked.name),
            id=tracked.begun_as("wandb") or os.environ.get("WANDB_RUN_ID"),
            resume="allow",
            dir=str(tracked.folder),
            config=dict(tracked.recipe),
            settings=wandb.Settings(console="off"),
        )
        tracked.note("wandb", self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step", step_sync=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def show(self, step: int, file: Path) -> None:
        self._run.log({file.parent.name: self._wandb.Image(str(file)), "step": step})

    def close(self) -> None:
        self._run.finish()


start = WeightsAndBiases
