"""Semantic segmentation by a linear head on frozen patch tokens (Oquab et al. 2023, DINOv2, section 7.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, check
from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.probing import HELD_OUT, LearningRate
from unlabeled.evaluate.protocol import Protocol, Score
from unlabeled.evaluate.segmentation_heads import Map, Standard, confusion, iou, miou, train_heads
from unlabeled.evaluate.segmentation_masks import Scene, Scenes, coded, nearest, open_scenes
from unlabeled.evaluate.segmentation_values import Coding, MaskSettings
from unlabeled.evaluate.splits import Splits
from unlabeled.nn.modes import evaluating
from unlabeled.progress import track

Count = Annotated[int, Field(ge=1)]


class Config(MaskSettings, Protocol, frozen=True, extra="forbid"):
    """A linear head on standardised patch tokens, its logits upsampled bilinearly to the mask, as in DINOv2.

    AdamW, cosine schedule, a head for every learning rate, all trained at once; they begin at zero. Scores are
    `segmentation_miou`, the mean over classes that occur in masks or predictions, and `segmentation_accuracy` of
    pixels, both from one confusion matrix over all test masks at their full size. Every process does all of it.

    Counts the values of all masks first. They must be class numbers without a gap, beside 255 for unlabelled pixels,
    unless `values`, `threshold`, `classes` or `ignore` give them a meaning.
    """

    version: ClassVar[str] = "segmentation/1"
    summary: ClassVar[str] = "a linear head on patch tokens, where the pictures have masks"
    order: ClassVar[int] = 8
    unit: ClassVar[str] = "mIoU and pixel accuracy, %"
    labels: ClassVar[bool] = False
    name: Literal["segmentation"] = "segmentation"

    size: tuple[Count, Count] | None = Field(
        None,
        description="(height, width) that pictures are resized to, pixels, multiples of the patch; null = those "
        "nearest to each picture's own size",
    )
    blocks: int = Field(1, ge=1, description="how many of the last blocks to concatenate, each through the final norm")
    stages: int | None = Field(
        None,
        ge=1,
        description="of networks whose stages have maps of several sizes (ConvNeXt, Swin): how many of the last to "
        "concatenate, resized to the finest of them; null = the last map",
    )
    lrs: tuple[LearningRate, ...] = Field(
        (1e-3, 3e-3, 1e-2, 3e-2, 0.1),
        min_length=1,
        description="learning rates to try; the mIoU of a held-out tenth of the training pictures decides",
    )
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False, description="AdamW's, DINOv2's value")
    epochs: int = Field(20, ge=1, description="passes over the training pictures")
    max_steps: int = Field(1000, ge=1, description="steps at most, whatever the epochs")
    batch_size: int = Field(16, ge=1, description="pictures per step, and encoded at a time")
    loss_scale: int | None = Field(
        4,
        ge=1,
        description="the loss sees masks at so many times the grid of patches, nearest; null = at their full size. The "
        "evaluation always does",
    )

    @field_validator("stages")
    @classmethod
    def _blocks_or_stages(cls, stages: int | None, info: ValidationInfo) -> int | None:
        if stages is not None and info.data.get("blocks", 1) > 1:
            raise ValueError(f"expected blocks or stages, found both ({info.data['blocks']}, {stages})")
        return stages

    def check(self, splits: Splits) -> None:
        self._coding(splits)

    def scores(self, bench: Bench) -> Iterator[Score]:
        coding = self._coding(bench.splits)
        train, test = (open_scenes(bench.splits.data, split, **self._how(bench)) for split in ("train", "val"))
        train.coding = test.coding = coding
        classes = len(coding.names)
        maps = [whole.scaled(self.loss_scale) for whole in feature_maps(bench, train, self)]
        standard = Standard.of(maps, bench.device)
        lr = self._best_lr(maps, train, standard, classes, bench.seed)
        head = train_heads(maps, standard, classes, (lr,), self, bench.seed)
        found = confusion(head, standard, feature_maps(bench, test, self))[0]
        each = [None if value.isnan() else 100 * value.item() for value in iou(found)]
        details = {"iou": dict(zip(coding.names, each, strict=True)), "unlabelled": coding.ignore}
        chosen = {"lr": lr, "classes": classes}
        yield Score("miou", 100 * miou(found).item(), chosen=chosen, details=details)
        yield Score("accuracy", 100 * found.trace().item() / found.sum().item(), chosen=chosen)

    def _how(self, bench: Bench) -> dict[str, Any]:
        """Arguments of `open_scenes` for the encoder. Raises UserError when it cannot take such images."""
        encoder = bench.encoder
        check(encoder, FeatureSpec("mean", self.blocks))
        self._check_stages(encoder)
        patch, size = encoder.patch_size, self.size
        if size and any(side % patch for side in size):
            near = [nearest(side, patch) for side in size]
            raise UserError(
                f"segmentation.size={list(size)}: {encoder.model} has patches of {patch} pixels, which do not divide "
                f"it. Use segmentation.size={near}."
            )
        if not encoder.takes_any_size(encoder.model) and size != encoder.image_size:
            height, width = encoder.image_size
            raise UserError(
                f"{encoder.model} encodes images of its own size only: expected segmentation.size=[{height},{width}], "
                f"found {size and list(size)}. --image-size loads it for other sizes."
            )
        return {"patch": patch, "size": size, "interpolation": bench.splits.preparation.interpolation}

    @torch.no_grad()
    def _check_stages(self, encoder: Encoder) -> None:
        if self.stages is None:
            return
        with evaluating(encoder):
            image = torch.zeros(1, encoder.channels, *encoder.image_size, device=next(encoder.parameters()).device)
            found = len(encoder.stages(image))
        if self.stages > found:
            raise UserError(f"segmentation.stages={self.stages}: {encoder.model} has {found} stages. Ask for fewer.")

    def _coding(self, splits: Splits) -> Coding:
        """Find the classes of mask values, once. Raises UserError when they are unclear or fewer than two."""
        if self not in splits.known:
            train, test = (open_scenes(splits.data, split, patch=1) for split in ("train", "val"))
            splits.known[self] = coded(train, test, self, aloud=splits.rank == 0)
        found: Coding = splits.known[self]
        return found

    def _best_lr(self, maps: Sequence[Map], scenes: Scenes, standard: Standard, classes: int, seed: int) -> float:
        """The learning rate with the highest mIoU on a held-out tenth, of equal ones the smallest.

        A single image is both trained on and held out.
        """
        if len(self.lrs) == 1:
            return self.lrs[0]
        order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed)).tolist()
        count = max(1, int(HELD_OUT * len(maps)))
        held, kept = order[:count], order[count:] or order
        heads = train_heads([maps[i] for i in kept], standard, classes, self.lrs, self, seed)
        found = miou(confusion(heads, standard, (Map(maps[i].features, scenes.mask(i)) for i in held))).nan_to_num()
        return min(zip((-found).tolist(), self.lrs, strict=True))[1]


def feature_maps(bench: Bench, scenes: Scenes, config: Config) -> Iterator[Map]:
    """Features in float16 and full mask of every scene, in order.

    Evaluation mode, no gradients; the encoder gets its mode back after every batch.
    """
    splits, device = bench.splits, bench.device
    normalize = Normalize(splits.data.config.mean, splits.data.config.std, device)
    rows = [some.tolist() for some in torch.arange(len(scenes)).split(config.batch_size)]
    loader = make_loader(
        scenes, rows, workers=splits.workers, device=device, timeout=splits.timeout, collate=_of_equal_shape
    )
    with Batches(loader) as made:
        for batch in track(made, "encoding images", len(scenes), lambda batch: sum(map(len, batch))):
            for group in batch:
                pixels = torch.stack([scene.pixels for scene in group]).to(device, non_blocking=True)
                found = encoded(bench.encoder, normalize(pixels), config)
                yield from (Map(features, scene.mask) for features, scene in zip(found, group, strict=True))


@torch.no_grad()
def encoded(encoder: Encoder, images: Tensor, config: Config) -> Tensor:
    """Patch tokens of the last blocks, or maps of the last stages, side by side: [B, h, w, D] float16, on the CPU."""
    blocks = config.blocks
    with evaluating(encoder):
        if config.stages is not None:
            maps = encoder.stages(images)[-config.stages :]
            finest = max((one.shape[-2:] for one in maps), key=lambda shape: shape[0])
            alike = [F.interpolate(one, finest, mode="bilinear", align_corners=False) for one in maps]
            return torch.cat(alike, dim=1).movedim(1, -1).half().cpu()
        # calls the module, since its forward pass may be compiled
        found = [encoder(images)] if blocks == 1 else encoder.intermediate(images, range(-blocks, 0))
    tokens = torch.cat([tokens.patches for tokens in found], dim=2)
    return tokens.unflatten(1, found[0].grid).half().cpu()


def _of_equal_shape(scenes: Sequence[Scene]) -> list[list[Scene]]:
    return [list(group) for _, group in groupby(scenes, key=lambda scene: scene.pixels.shape)]
