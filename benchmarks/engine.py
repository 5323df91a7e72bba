"""What the engine's loop costs over a bare loop with the same module and the same batch in memory.

    python benchmarks/engine.py [--json] [--rounds N]

The loops take turns step by step, so that a disturbance of the machine meets both. The engine draws, collates,
normalises, checks and logs (every 10 steps, five times as often as recipes do); the bare loop does forward, backward,
update and nothing else. A round is 10 steps; saving and evaluating are left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import finish, machine, options, seconds, table

from unlabeled.accelerator import make_accelerator
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import Sample, collate
from unlabeled.data.opened import Opened
from unlabeled.pretrain.method import Method, Progress
from unlabeled.progress import Bars
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.optim import param_groups

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "mae_shapes.yaml"
BATCH, STEPS = 128, 10
OVERRIDES = [
    f"data.train_size={BATCH}",
    f"train.batch_size={BATCH}",
    "method.encoder.width=192",
    "run.workers=0",
    f"run.log_every={STEPS}",
    "run.checkpoint_every=1000000",
    "evaluate=null",
    "run.device=cpu",
]


class Prepared(ViewDataset):
    """Samples made once, so that only the loop is measured."""

    def prepare(self) -> None:
        """Make every sample."""
        self.samples = [super(Prepared, self).__getitem__(Position(0, i)) for i in range(len(self.source))]

    def __getitem__(self, position: Position) -> Sample:
        return self.samples[position.index]


class Turns:
    """Called by the engine after each of its steps: notes how long it took and runs a bare step.

    Args:
        bare: one step of the bare loop.
        wait: waits until the device has done what it was asked, so that each loop pays for its own work.
    """

    def __init__(self, bare: Callable[[], None], wait: Callable[[], None] = lambda: None) -> None:
        self.bare, self.wait = bare, wait
        self.ours_s: list[float] = []
        self.bare_s: list[float] = []
        self._started: float | None = None

    def __call__(self, step: int) -> None:
        self.wait()
        now = time.perf_counter()
        # the first step has no beginning, and warms up
        if self._started is not None:
            self.ours_s.append(now - self._started)
            self.bare_s.append(seconds(self._bare))
        self._started = time.perf_counter()

    def _bare(self) -> None:
        self.bare()
        self.wait()


def main() -> None:
    """Both loops in turn, the ratio of their medians."""
    chosen = options("The engine's own cost.", rounds=12)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        steps = chosen.rounds * STEPS + 1
        recipe = load(PretrainRecipe, RECIPE, [*OVERRIDES, f"train.epochs={steps}", f"run.output={folder}"])
        data = Opened(recipe.data)
        dataset = Prepared(data.train, recipe.method.views, recipe.method.backbone.patch_size, recipe.seed)
        dataset.prepare()
        turns = Turns(bare_step(recipe, dataset))
        run_engine(Job(recipe, recipe.method.build, data, dataset), Path(folder), turns)

    ours, bare = rounds(turns.ours_s), rounds(turns.bare_s)
    print(f"{machine()}; MAE on {BATCH} pictures of 32 px, {chosen.rounds} rounds of {STEPS} steps")
    rows = [(name, f"{median(times) / STEPS * 1000:.1f}") for name, times in (("engine", ours), ("bare loop", bare))]
    print(table(("medians", "ms/step"), rows))
    finish(chosen, {"overhead": round(median(ours) / median(bare) - 1, 4)})


def run_engine(job: Job, output: Path, turns: Turns) -> None:
    """The engine from its first step to its last, the final checkpoint left out."""
    recipe = job.recipe
    engine = Engine(job, make_accelerator(recipe.run.device, recipe.train.precision, 600), output)
    engine.save = lambda: None  # type: ignore[method-assign]
    engine.display.bars = Bars(active=False)
    engine.display.show = lambda step, *_: turns(step)  # type: ignore[method-assign]
    assert engine.run()


def bare_step(recipe: Any, dataset: ViewDataset) -> Callable[[], None]:
    """Forward, backward, update, on one batch that is ready."""
    torch.manual_seed(recipe.seed)
    model: Method = recipe.method.build().train()
    optimizer = recipe.optim.build(param_groups(model, recipe.optim.weight_decay))
    cpu = torch.device("cpu")
    raw = collate([dataset[Position(0, i)] for i in range(BATCH)])
    batch = to_device(raw, cpu, Normalize(recipe.data.mean, recipe.data.std, cpu))
    progress = Progress(0, 1, 0.0, 1.0)

    def step() -> None:
        model(batch, progress).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rounds(times: list[float]) -> list[float]:
    """Sums over every `STEPS` steps, each with one logged line."""
    return [sum(times[i : i + STEPS]) for i in range(0, len(times) - STEPS + 1, STEPS)]


if __name__ == "__main__":
    main()
