"""Pretraining and fine-tuning from Python: `unlabeled.pretrain(recipe, data=...)`, by the engine of the commands."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch

from unlabeled.accelerator import apart
from unlabeled.errors import Stopped, UserError
from unlabeled.files import json_object
from unlabeled.interface import fragment
from unlabeled.interface.changes import Overrides, Recipe, as_file, changes_of, in_python, of_data, setting
from unlabeled.interface.model import Model, load
from unlabeled.launch.stage import Stage
from unlabeled.page.brief import brief
from unlabeled.page.state import state
from unlabeled.page.writing import NAME
from unlabeled.progress import Bars, current
from unlabeled.signals import handlers_kept, stop
from unlabeled.stages import finetune as finetuning
from unlabeled.stages import pretrain as pretraining
from unlabeled.train.engine import Engine

_going_on = threading.Lock()


class Run:
    """A run in its folder: results, and how it went. A notebook draws it.

    Attributes:
        folder: of the run.
        export: of the encoder or classifier, for `unlabeled.load`, timm and the commands.
        page: `index.html` of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.export, self.page = folder, folder / "export", folder / NAME

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`: losses and scores over time, each with its `step`."""
        lines = (self.folder / "metrics.jsonl").read_bytes().splitlines()
        return [found for line in lines if (found := json_object(line))]

    @property
    def scores(self) -> dict[str, float]:
        """The newest evaluation, by name; empty = there was none."""
        return dict(state(self.folder).scores)

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json` of a fine-tuning; empty = there is none."""
        file = self.folder / "result.json"
        return json_object(file.read_bytes()) if file.is_file() else {}

    def load(self, **how: Any) -> Model:
        """Load the export, see `unlabeled.load`."""
        return load(self.export, **how)

    def __repr__(self) -> str:
        return f"Run({self.folder}: {state(self.folder).words})"

    def _repr_html_(self) -> str:
        return fragment.write(brief(self.folder), self.folder)


Encoded: TypeAlias = str | Path | Run | Model


def address_of(encoder: Encoded) -> str:
    """The address of an encoder, as a recipe has it."""
    return str(encoder.export if isinstance(encoder, Run) else encoder.path if isinstance(encoder, Model) else encoder)


def pretrain(
    recipe: Recipe,
    *,
    data: Any = None,
    output: str | Path | None = None,
    overrides: Overrides = (),
    fresh: bool = False,
    extend: float | None = None,
) -> Run:
    """Pretrain an encoder, as `unlabeled pretrain` does. The same call goes on where it was stopped, to the same bits,
    and returns at once where it had ended.

    Args:
        recipe: a file, the name of a recipe that comes with the package, or its fields.
        data: pictures: a folder, tars, a table, a torch `Dataset` (or `{"train": DATASET, "val": DATASET}`), or fields
            of `data:`; None = the recipe's.
        output: folder of the run; None = the recipe's, runs/NAME.
        overrides: fields to change: `{"train.epochs": 3}`, or `["train.epochs=3"]`.
        fresh: whether an earlier run in the folder is removed first.
        extend: epochs to go on beyond the recipe's, where that is exact.

    Raises:
        UserError: something in recipe or data is wrong.
        Stopped: a KeyboardInterrupt; a checkpoint was written, and the same call goes on.
    """
    changes = [*of_data(data), *changes_of(overrides), *setting("run.output", output)]
    return _run(pretraining.STAGE, recipe, changes, fresh, extend)


def finetune(
    recipe: Recipe,
    *,
    encoder: Encoded | None = None,
    data: Any = None,
    output: str | Path | None = None,
    overrides: Overrides = (),
    fresh: bool = False,
    extend: float | None = None,
) -> Run:
    """Fine-tune an encoder on labelled pictures, as `unlabeled finetune` does.

    `encoder` is an address as in a recipe, a run of `pretrain`, or a model of `load`; None = the recipe's. For the rest
    see `pretrain`.
    """
    address = None if encoder is None else address_of(encoder)
    changes = [
        *setting("encoder", address),
        *of_data(data, labels=True),
        *changes_of(overrides),
        *setting("run.output", output),
    ]
    return _run(finetuning.STAGE, recipe, changes, fresh, extend)


def _run(stage: Stage[Any, Any], recipe: Recipe, changes: Sequence[str], fresh: bool, extend: float | None) -> Run:
    if fresh and extend is not None:
        raise UserError(f"fresh=True starts over and extend={extend:g} goes on: choose one")
    with ExitStack() as stack:
        for context in (_alone(), in_python(), handlers_kept(), apart(), torch.random.fork_rng(), stop, stop.now()):
            stack.enter_context(context)
        stack.enter_context(nullcontext() if current() else Bars())
        word = stack.enter_context(as_file(recipe))
        started = stack.enter_context(stage.begun(word, changes, fresh=fresh, force=fresh, extend=extend))
        assert started is not None, "no dry run"
        engine, finish = started
        assert isinstance(engine, Engine)
        if not engine.run():
            folder = engine.checkpoints.path(engine.step)
            raise Stopped(f"stopped by {stop.received} at step {engine.step}; checkpoint in {folder}")
        finish()
        return Run(engine.output)


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second run at a time: two would draw from the same random numbers."""
    if not _going_on.acquire(blocking=False):
        raise UserError("another run goes on in this process, expected one at a time. Wait for it, or use processes.")
    try:
        yield
    finally:
        _going_on.release()
