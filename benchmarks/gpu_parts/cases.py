"""The training steps that are measured: shipped recipes at a batch, run by the engine on images in memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from gpu_parts.place import Place
from unlabeled.accelerator import make_accelerator
from unlabeled.data.batch.loader import RawBatch, ViewDataset, collate
from unlabeled.data.batch.sampler import Position
from unlabeled.data.opened import Opened
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job

RECIPES = Path(__file__).parents[2] / "recipes" / "pretrain"
DRAWN = 32  # pictures that are cut into views; a larger batch repeats them
LARGE = "method.encoder.model=vit_large_patch16_224"
NETWORK = ("method.encoder.depth=1", "method.encoder.width=48", "method.encoder.heads=2")
VIEW = ("method.view.size=32",)
PAIR = ("method.first.size=32", "method.second.size=32")
CROPS = ("method.global_1.size=32", "method.global_2.size=32", "method.local.size=16", "method.local.count=2")
HEAD = ("method.head.prototypes=64", "method.head.hidden=32")
COMMON = ("train.precision=bf16", "evaluate=null", "run.workers=0", "run.compile=false", "run.accumulate=1")


class Case(NamedTuple):
    """A step.

    Attributes:
        recipe: shipped, by its stem.
        batch: pictures.
        compiled: images/s by arithmetic with all regions compiled; None = not estimated.
        fields: of the recipe that change.
        tiny: fields of a dry run.
    """

    recipe: str
    batch: int
    compiled: float | None
    fields: tuple[str, ...]
    tiny: tuple[str, ...]


MAE = (*NETWORK, *VIEW, "method.decoder={name: self, width: 32, depth: 1, heads: 2}")
SIMMIM = (*NETWORK, *VIEW, "method.view.mask.unit=16")
SIMCLR = (*NETWORK, *VIEW, "method.hidden=32")
MOCO = (*NETWORK, *PAIR, "method.hidden=32")
CNN = (*PAIR, "method.hidden=32", "method.encoder.model=test_resnet")
DISTILL = (*NETWORK, *CROPS, *HEAD)
CASES = {
    "mae_s": Case("mae_vits16_1gpu", 256, 23_000, (), MAE),
    "mae_b": Case("mae_vitb16_in1k", 256, 7_400, (), MAE),
    "mae_l_64": Case("mae_vitl16_in1k", 64, 3_400, (), MAE),
    "mae_l": Case("mae_vitl16_in1k", 512, 3_700, (), MAE),
    "simmim_s": Case("simmim_vits16_1gpu", 256, 13_700, (), SIMMIM),
    "simmim_l": Case("simmim_vits16_1gpu", 64, 1_250, (LARGE,), SIMMIM),
    "simclr_s": Case("simclr_vits16_1gpu", 256, 6_300, (), SIMCLR),
    "simclr_l": Case("simclr_vits16_1gpu", 64, 630, (LARGE,), SIMCLR),
    "mocov3_s": Case("mocov3_vits16_1gpu", 256, 4_900, (), MOCO),
    "mocov3_l": Case("mocov3_vits16_1gpu", 64, 475, (LARGE, "method.encoder.heads=16"), MOCO),
    "mocov3_r50": Case("mocov3_resnet50_in1k", 256, None, (), CNN),
    "dino_s": Case("dino_vits16_in1k", 256, 2_700, (), DISTILL),
    "dino_s_64": Case("dino_vits16_in1k", 64, 2_300, (), DISTILL),
    "dino_l": Case("dino_vits16_in1k", 64, 280, (LARGE,), DISTILL),
    "ibot_s": Case("ibot_vits16_in1k", 256, 2_600, (), DISTILL),
    "ibot_l": Case("ibot_vits16_in1k", 64, 280, (LARGE,), DISTILL),
    "dinov2_l": Case("dinov2_vitl16_in1k", 64, 285, (), DISTILL),
}


class Steps:
    """The engine of a case, with one batch in memory."""

    def __init__(self, place: Place, case: Case, *fields: str) -> None:
        recipe = load(PretrainRecipe, RECIPES / f"{case.recipe}.yaml", self._fields(place, case, *fields))
        data = Opened(recipe.data)
        dataset = ViewDataset(data.train, recipe.method.views, recipe.method.backbone.patch_size, recipe.seed)
        job = Job(recipe, recipe.method.build, data, dataset)
        self.pictures = recipe.train.batch_size
        self.engine = Engine(
            job, make_accelerator(recipe.run.device, recipe.train.precision, 600), place.folder / "run"
        )
        self.engine.model.train()
        self.pending = [self._batch(dataset, place)]

    @staticmethod
    def _fields(place: Place, case: Case, *fields: str) -> list[str]:
        size = place.size(case.batch, 4)
        data = f"data={{name: shapes, train_size: {max(size, DRAWN)}, val_size: 1, size: {place.size(256, 32)}}}"
        length = (f"train.batch_size={size}", f"run.device={place.device.type}")
        return [data, *length, *COMMON, *case.fields, *(case.tiny if place.dry else ()), *fields]

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
