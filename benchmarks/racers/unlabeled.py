"""Ours: `unlabeled pretrain` with the recipe for CIFAR-10 that is shipped, its network and sizes those of the race."""

from __future__ import annotations

from pathlib import Path

from racers.parts import Racer, Task
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

RECIPES = Path(__file__).parents[2] / "recipes" / "pretrain"
QUIET = ("run.threads=1", "run.workers=0", "run.page=false", "evaluate=null", "run.log_every=50", "--fresh", "--force")


class Unlabeled(Racer):
    """Parts of epochs too; warm-up keeps its share of the recipe."""

    methods = ("simclr", "dino", "mocov3")
    whole_epochs = False

    def command(self, python: Path, task: Task) -> list[str]:
        recipe = RECIPES / f"{task.method}_resnet_cifar10.yaml"
        shipped = load(PretrainRecipe, str(recipe), [])
        warmup = task.epochs * shipped.optim.warmup_epochs / shipped.train.epochs
        views = [name for name, value in shipped.method if value in shipped.method.views]
        sizes = {name: task.size if name != "local" else task.size // 2 for name in views}
        return [
            *(str(python), "-m", "unlabeled", "pretrain", str(recipe), f"run.output={task.out}", f"seed={task.seed}"),
            *(f"data.path={task.pictures}", "data.train=.", "data.val=null", f"train.batch_size={task.batch}"),
            *(f"train.epochs={task.epochs:.6f}", f"optim.warmup_epochs={warmup:.6f}"),
            *(f"method.encoder.model={task.network}", *(f"method.{name}.size={side}" for name, side in sizes.items())),
            *QUIET,
        ]

    def export(self, task: Task) -> Path:
        return task.out / "export"


RACER = Unlabeled()
