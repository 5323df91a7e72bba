"""What the contenders share: sizes, batches of noise, training steps, and the counting of products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import timm
import torch
from torch import Tensor, nn

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.method import Method, Progress
from unlabeled.train.optim import param_groups
from unlabeled.train.optimizers import adamw

MODEL, SIDE, LOCAL_SIDE, PATCH = "vit_small_patch16_224", 224, 96, 16
WIDTH, DEPTH, CHANNELS = 384, 12, 3
PATCHES, LOCAL_PATCHES = (SIDE // PATCH) ** 2, (LOCAL_SIDE // PATCH) ** 2
PIXELS = PATCH * PATCH * CHANNELS
LOCALS = 6  # small crops of `multi_crop`
LR, BETAS, DECAY, MOMENTUM = 1e-4, (0.9, 0.999), 0.05, 0.996
# past every warm-up and frozen epoch
PROGRESS = Progress(step=500, total_steps=1000, epoch=50.0, epochs=100.0)

Step = Callable[[], Tensor]


class Peer(nn.Module, ABC):
    """A method put together from lightly's parts, as lightly documents it.

    Attributes:
        renames: beginnings of our parameters' names and what they are called here.
        more: parameters that are trained here beside ours.
    """

    renames: ClassVar[Mapping[str, str]]
    more: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The loss."""

    def after_step(self) -> None:
        """Move the teacher, if there is one."""

    @classmethod
    def name_of(cls, name: str) -> str:
        """The name here of our parameter."""
        for ours, here in cls.renames.items():
            if name.startswith(ours):
                return here + name.removeprefix(ours)
        return name


class Ours(NamedTuple):
    """A network of ours.

    Attributes:
        build: makes it with so many encoder blocks.
        gflop: of a training step's matrix products, per picture; None = not those of the published network.
    """

    build: Callable[[int], Method]
    gflop: float | None


class Comparison(NamedTuple):
    """One method: ours, variants of ours, and lightly's.

    Attributes:
        make_batch: (pictures, seed) to a batch.
        ours: the published network.
        lightly: builds the same with so many encoder blocks; None = lightly has no parts for it.
        note: where lightly's differs.
        variants: of ours, by name.
        batch: pictures per step; enough that updating the weights weighs little, as in training.
    """

    make_batch: Callable[[int, int], Batch]
    ours: Ours
    lightly: Callable[[int], Peer] | None
    note: str = ""
    variants: Mapping[str, Ours] = {}
    batch: int = 8


# ---------------------------------------------------------------- batches


def crops(generator: torch.Generator, count: int, pictures: int, side: int = SIDE) -> Tensor:
    """Noise [count, pictures, 3, side, side]."""
    return torch.randn(count, pictures, CHANNELS, side, side, generator=generator)


def pair(pictures: int, seed: int) -> Batch:
    """Two views of noise, each a view of its own."""
    generator = torch.Generator().manual_seed(seed)
    return as_batch(pictures, *(ViewBatch(crops(generator, 1, pictures), None) for _ in range(2)))


def multi_crop(pictures: int, seed: int) -> Batch:
    """Two large crops and six small ones of noise."""
    generator = torch.Generator().manual_seed(seed)
    large = ViewBatch(crops(generator, 2, pictures), None)
    return as_batch(pictures, large, ViewBatch(crops(generator, LOCALS, pictures, LOCAL_SIDE), None))


def equal_mask(generator: torch.Generator, pictures: int, visible: int) -> PatchMask:
    """All but `visible` random patches hidden in each of one crop's pictures: leading axes [1, pictures]."""
    order = torch.rand(pictures, PATCHES, generator=generator).argsort(dim=1)
    keep, drop = order[:, :visible], order[:, visible:]
    hidden = torch.zeros(pictures, PATCHES, dtype=torch.bool).scatter(1, drop, True)
    return PatchMask(hidden[None], keep[None], drop[None])


def as_batch(pictures: int, *views: ViewBatch) -> Batch:
    """Views without labels."""
    return Batch(list(views), torch.full((pictures,), -1), torch.arange(pictures))


def with_class_token(index: Tensor) -> Tensor:
    """Patches by lightly's count, in which the class token is number 0."""
    return index + 1


# ---------------------------------------------------------------- networks


def timm_vit(depth: int, **arguments: Any) -> nn.Module:
    """ViT-S/16 without a head."""
    return timm.create_model(MODEL, num_classes=0, depth=depth, **arguments)


def lightly_vit(depth: int) -> nn.Module:
    """lightly's wrapper of ViT-S/16, which gives class tokens, its patch projection frozen."""
    from lightly.models.modules import MaskedVisionTransformerTIMM

    backbone = MaskedVisionTransformerTIMM(vit=timm_vit(depth))
    backbone.mask_token.requires_grad_(False)
    backbone.vit.patch_embed.requires_grad_(False)
    return backbone


def lightly_vit_of_any_size(depth: int) -> nn.Module:
    """lightly's wrapper of ViT-S/16 for crops of several sizes; its table of positions is learnt."""
    from lightly.models.modules import MaskedVisionTransformerTIMM

    vit = timm_vit(depth, dynamic_img_size=True)
    backbone: nn.Module = MaskedVisionTransformerTIMM(vit=vit, antialias=False, pos_embed_initialization="learn")
    backbone.get_parameter("mask_token").requires_grad_(False)
    return backbone


def frozen_copy(copy: nn.Module, source: nn.Module) -> nn.Module:
    """A teacher equal to its student."""
    copy.load_state_dict(source.state_dict())
    return copy.requires_grad_(False)


# ---------------------------------------------------------------- training steps


def our_step(model: Method, batch: Batch) -> Step:
    """Forward, backward, AdamW as our engine builds it, teacher."""
    optimizer = adamw.Config(betas=BETAS).build(param_groups(model, DECAY))
    for group in optimizer.param_groups:
        group["lr"] = LR
    return _step(lambda: model(batch, PROGRESS).loss, optimizer, lambda: model.after_step(PROGRESS))


def lightly_step(model: Peer, batch: Batch) -> Step:
    """Forward, backward, torch's AdamW, teacher."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return _step(lambda: model(batch), torch.optim.AdamW(groups, lr=LR, betas=BETAS), model.after_step)


def _step(loss: Step, optimizer: torch.optim.Optimizer, after: Callable[[], None]) -> Step:
    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()
        return value.detach()

    return step


# ---------------------------------------------------------------- products, in GFLOP of a forward


def linear(rows: float, *widths: int) -> float:
    """Linear layers through `widths`, one after the other."""
    return sum(2 * rows * a * b for a, b in pairwise(widths)) / 1e9


def blocks(tokens: int, width: int, depth: int) -> float:
    """Transformer blocks over `tokens`, attention's two products included."""
    return depth * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width) / 1e9


def patch_embedding(patches: int) -> float:
    """Of one crop."""
    return linear(patches, PIXELS, WIDTH)


def encoder(patches: int) -> float:
    """ViT-S/16's blocks over the patches of one crop and a class token."""
    return blocks(patches + 1, WIDTH, DEPTH)
