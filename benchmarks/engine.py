"""What the engine's loop costs over a bare loop with the same module and the same batches in memory.

python benchmarks/engine.py [--json] [--rounds N]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import finish, machine, options, table

from unlabeled.data.loader import Normalize, RawBatch, Sample, ViewDataset, collate, to_device
from unlabeled.data.sampler import Position
from unlabeled.engine import Engine, Job
from unlabeled.method import Method, Progress
from unlabeled.recipe import load
from unlabeled.schema import pretrain_recipe
from unlabeled.train.distributed import make_accelerator
from unlabeled.train.optim import param_groups

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "mae_shapes.yaml"
STEPS, BATCH = 20, 128
OVERRIDES = [
    f"data.train_size={BATCH}",
    f"train.epochs={STEPS}",
    f"train.batch_size={BATCH}",
    "method.encoder.width=192",
    "run.workers=0",
    "run.checkpoint_every=1000000",
    "evaluate=null",
]


class Prepared(ViewDataset):
    """Samples made once, so that only the loop is measured."""

    def prepare(self) -> None:
        """Make every sample."""
        self.samples = [super(Prepared, self).__getitem__(Position(0, i)) for i in range(len(self.source))]

    def __getitem__(self, position: Position) -> Sample:
        return self.samples[position.index]


def main() -> None:
    """Both loops in turn, the ratio of their medians."""
    chosen = options(__doc__ or "", rounds=7)
    torch.set_num_threads(chosen.threads)
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        recipe = load(pretrain_recipe(), RECIPE, [*OVERRIDES, f"run.output={folder}"])
        source = recipe.data.open("train")
        dataset = Prepared(source, recipe.method.views, recipe.method.encoder.patch_size, recipe.seed)
        dataset.prepare()
        for _ in range(chosen.rounds):
            ours.append(timed(engine_loop(recipe, dataset, Path(folder))))
            bare.append(timed(bare_loop(recipe, dataset)))
    overhead = median(ours) / median(bare) - 1
    rows = [("engine", f"{median(ours) / STEPS * 1000:.1f}"), ("bare loop", f"{median(bare) / STEPS * 1000:.1f}")]
    print(f"{machine()}; {STEPS} steps of {BATCH} pictures of 32 px, {chosen.rounds} rounds")
    print(table(("medians", "ms/step"), rows))
    finish(chosen, {"overhead": round(overhead, 4)})


def engine_loop(recipe: Any, dataset: ViewDataset, output: Path) -> Callable[[], None]:
    """The engine's own loop over all steps, its last save left out."""
    accelerator = make_accelerator("cpu", "no", 600, [], str(output))
    engine = Engine(Job(recipe, recipe.method.build, dataset, None, {}), accelerator, output)
    engine.save = lambda: None  # type: ignore[method-assign]
    engine.display.active = False
    return lambda: _finished(engine.run())


def bare_loop(recipe: Any, dataset: ViewDataset) -> Callable[[], None]:
    """Forward, backward, step and nothing else, over batches collated beforehand as the loader would."""
    torch.manual_seed(recipe.seed)
    model: Method = recipe.method.build().train()
    optimizer = recipe.optim.build(param_groups(model, recipe.optim.weight_decay))
    device = torch.device("cpu")
    normalize = Normalize(recipe.data.mean, recipe.data.std, device)

    def loop() -> None:
        for step in range(STEPS):
            raw: RawBatch = collate([dataset[Position(step, i)] for i in range(BATCH)])
            batch = to_device(raw, device, normalize)
            model(batch, Progress(step, STEPS, float(step), float(STEPS))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def timed(loop: Callable[[], None]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    loop()
    return time.perf_counter() - started


def _finished(done: bool) -> None:
    assert done


if __name__ == "__main__":
    main()
