"""The training steps that are measured: shipped recipes at a batch, run by the engine on images in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from count import BARE, RECIPES, ROWS
from torch.utils.data._utils.pin_memory import pin_memory

from gpu_parts.place import Place
from unlabeled.accelerator import make_accelerator
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.opened import Opened
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job

DRAWN = 32  # pictures that are cut into views; a larger batch repeats them
NETWORK = ("method.encoder.depth=1", "method.encoder.width=48", "method.encoder.heads=2")
VIEW = ("method.view.size=32",)
PAIR = ("method.first.size=32", "method.second.size=32")
CROPS = ("method.global_1.size=32", "method.global_2.size=32", "method.local.size=16", "method.local.count=2")
HEAD = ("method.head.prototypes=64", "method.head.hidden=32")


MAE = (*NETWORK, *VIEW, "method.decoder={name: self, width: 32, depth: 1, heads: 2}")
SIMMIM = (*NETWORK, *VIEW, "method.view.mask.unit=16")
BEIT = (*SIMMIM, "method.encoder.model=beit_base_patch16_224")
SIMCLR = (*NETWORK, *VIEW, "method.hidden=32")
MOCO = (*NETWORK, *PAIR, "method.hidden=32")
CNN = (*PAIR, "method.hidden=32", "method.encoder.model=test_resnet")
DISTILL = (*NETWORK, *CROPS, *HEAD)
# fields of a dry run, by the beginning of a row's name
TINY = {
    **{"mae": MAE, "simmim-S": SIMMIM, "simmim-L": BEIT, "simclr": SIMCLR, "mocov3-R50": CNN, "mocov3": MOCO},
    **dict.fromkeys(("dino", "ibot", "dinov2"), DISTILL),
}
CASES = [name for name, row in ROWS.items() if row.processes == 1]


def tiny(name: str) -> tuple[str, ...]:
    """Fields of a row's dry run."""
    return next(fields for start, fields in TINY.items() if name.startswith(start))


def file_of(name: str) -> Path:
    """The recipe of a row."""
    return RECIPES / f"{ROWS[name].recipe}.yaml"


class Steps:
    """The engine of a row of `count.py`, with one batch in memory.

    Args:
        place: of its device.
        name: of the row.
        fields: that change, the last ones win.
        pictures: of the batch; None = the row's.
    """

    def __init__(self, place: Place, name: str, *fields: str, pictures: int | None = None) -> None:
        size = place.size(pictures or ROWS[name].pictures, 4)
        recipe = load(PretrainRecipe, file_of(name), self._fields(place, name, size, *fields))
        data = Opened(recipe.data)
        dataset = ViewDataset(
            data.train, recipe.method.views, recipe.method.backbone.patch_size, recipe.seed, recipe.method.mixing
        )
        job = Job(recipe, recipe.method.build, data, dataset)
        self.pictures = recipe.train.batch_size
        self.engine = Engine(
            job, make_accelerator(recipe.run.device, recipe.train.precision, 600), place.folder / "run"
        )
        self.engine.model.train()
        self.pending = [self._batch(dataset, place)]

    @staticmethod
    def _fields(place: Place, name: str, size: int, *fields: str) -> list[str]:
        side = place.size(256, 32)
        data = f"data={{name: shapes, train_size: {max(size, DRAWN)}, val_size: 1, size: {side}}}"
        length = (f"train.batch_size={size}", f"run.device={place.device.type}")
        return [
            *BARE,
            data,
            *length,
            "run.compile=false",
            *ROWS[name].fields,
            *(tiny(name) if place.dry else ()),
            *fields,
        ]

    def _batch(self, dataset: ViewDataset, place: Place) -> RawBatch:
        """A batch of this size: what was drawn for a few pictures, repeated, with pixels of noise."""
        few = [dataset[Position(0, i, 0, i, self.pictures)] for i in range(min(self.pictures, DRAWN))]
        raw = collate([few[i % len(few)] for i in range(self.pictures)])
        noise = [crops._replace(pixels=torch.randint_like(crops.pixels, 256)) for crops in raw.crops]
        raw = raw._replace(crops=noise)
        return pin_memory(raw) if place.cuda else raw

    def step(self) -> None:
        """One whole optimizer step, always as the first of the run."""
        self.engine.step = 0
        self.engine.rehearse(self.pending)
