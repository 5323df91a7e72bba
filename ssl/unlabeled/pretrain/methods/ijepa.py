"""I-JEPA (Assran et al., CVPR 2023; official code facebookresearch/ijepa at 52c1ae9).

From one large block of a picture, predict what a teacher says of four other blocks: no pixels, no colours changed.
Where paper and code differ this follows the code: places of blocks leave out the last row and column
(`view.mask.reach`), contexts are cut to the shortest of their batch from below (`view.mask.cut`), and linear layers
begin alike whatever their depth. The shortest context is that of the global batch, so that one process learns what many
do; the official code takes that of each process.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding, Tokens
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.multi_block import Config as MultiBlockMask
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.nn.curves import warmup
from unlabeled.nn.init import truncated_normal_
from unlabeled.nn.measures import feature_std
from unlabeled.nn.patches import PatchMask, gather
from unlabeled.nn.positions import resample, sincos_2d, with_prefix
from unlabeled.nn.regions import varying
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.decoders.self import SelfBlock
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_window
from unlabeled.pretrain.symptoms import nothing_explained

VIEW = View(scale=(0.3, 1.0), interpolation="bilinear", flip=0.0, mask=MultiBlockMask())


class PredictorConfig(BaseModel, frozen=True, extra="forbid"):
    """A narrow transformer from the context to the targets."""

    width: int = Field(384, ge=4, multiple_of=4, description="token width")
    depth: int = Field(12, ge=1, description="number of blocks")
    heads: int | None = Field(None, ge=1, description="attention heads; null = the encoder's")
    mlp_ratio: float = Field(4.0, ge=0.25, le=64, description="width of a block's MLP over the token width")
    norm_eps: float = Field(1e-6, gt=0, le=0.1, description="added to the variance in layer norms")


class Config(MethodConfig, frozen=True):
    """I-JEPA: defaults are the paper's ViT-H/14."""

    name: Literal["ijepa"] = "ijepa"
    view: View = Field(VIEW, description="the crop and its mask: blocks to predict, and what is seen")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="vit_huge_patch14_gap_224"),
        description="the vision transformer that is kept; officially without class token: vit_*_gap_*",
    )
    predictor: PredictorConfig = Field(PredictorConfig(), description="from the context to the targets")
    momentum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the teacher at the start, a straight line takes it to 1; null = 0.996 at batch 2048, rescaled",
    )

    title: ClassVar[str] = "I-JEPA"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(masked=True, equal_counts=True)}
    hides: ClassVar[Hiding | None] = "drop"
    paper: ClassVar[Setting] = Setting(batch=2048, epochs=300, steps=187_500)
    ends: ClassVar[dict[str, float]] = {"momentum": 1.0}
    rules: ClassVar[dict[str, Rule]] = {"momentum": Rule(0.996, same_window)}

    def build(self) -> IJEPA:
        """A randomly initialised model, its teacher equal to it. The teacher drops no paths."""
        calm = self.encoder.model_copy(update={"drop_path": 0.0})
        encoder, teacher = (one.build(self.view.shape, pooled=False) for one in (self.encoder, calm))
        encoder.initialise_("ijepa")
        return IJEPA(encoder, teacher, Predictor(encoder, self.predictor), self)


class Predictor(nn.Module):
    """Mask tokens at the places of a target attend to the context and to each other; targets do not see one another
    (section 3, official `VisionTransformerPredictor`)."""

    def __init__(self, encoder: Encoder, config: PredictorConfig) -> None:
        super().__init__()
        width, self.grid = config.width, encoder.native_grid
        attention = vars(encoder.vit.blocks[-1].attn)
        heads = config.heads or attention.get("num_heads", attention.get("heads"))
        if width % heads:
            raise UserError(
                f"method.predictor.width {width} is no multiple of {heads} heads. Set method.predictor.heads."
            )
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(with_prefix(sincos_2d(width, self.grid), 0), requires_grad=False)
        shape = heads, config.mlp_ratio, config.norm_eps
        self.blocks = nn.ModuleList(SelfBlock(width, *shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, encoder.width)
        truncated_normal_(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, mask: PatchMask) -> Tensor:
        """Predictions [B, T, M, D] at the sets of a mask from its visible tokens."""
        keep, sets = mask.indices()[0], mask.sets()
        table = resample(self.positions, self.grid, tokens.grid).expand(len(keep), -1, -1)
        context = self.embed(tokens.patches) + gather(table, keep)
        wanted = self.mask_token + gather(table, sets.flatten(1))

        # each set is a sequence of its own, after the context
        seen, rows = keep.shape[1], sets.flatten(0, 1)
        wanted = wanted.unflatten(1, sets.shape[1:]).flatten(0, 1)
        x = torch.cat([context.repeat_interleave(sets.shape[1], 0), wanted], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        # the loss does not read the context, so the last block leaves it out
        places = torch.arange(seen, seen + rows.shape[1], device=rows.device).expand_as(rows)
        return self.head(self.norm(last(x, places))).unflatten(0, sets.shape[:2])


class IJEPA(PretrainMethod):
    """An encoder that sees a block, and a predictor of a teacher's tokens elsewhere."""

    def __init__(self, encoder: Encoder, teacher: Encoder, predictor: Predictor, config: Config) -> None:
        super().__init__()
        self.encoder, self.teacher, self.predictor = encoder, teacher, predictor
        self.momentum: float = as_in_paper(config).momentum
        follow_(teacher, encoder)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, mask = batch.views[0].flat()
        assert mask is not None

        # the encoder sees the context, the predictor is asked for every target
        whole, targets = self.teach(images, mask)
        prediction = self.predictor(self.encoder(images, drop=mask), mask)
        loss, measures = regression(prediction.flatten(0, 2), targets.flatten(0, 2))
        features = whole.pool("mean")
        return Output(loss, {**measures, "feature_std": feature_std(features)}, features)

    @torch.no_grad()
    def teach(self, images: Tensor, mask: PatchMask) -> tuple[Tokens, Tensor]:
        """The teacher's tokens of whole images, and those at the sets of a mask, normalised over D [B, T, M, D]."""
        whole, sets = self.teacher(images), mask.sets()
        targets = gather(whole.patches, sets.flatten(1)).float()
        return whole, F.layer_norm(targets, targets.shape[-1:], eps=1e-5).unflatten(1, sets.shape[1:])

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        ema_(self.teacher, self.encoder, warmup(self.momentum, 1.0, progress.share), broken)

    def exports(self) -> dict[str, Encoder]:
        return {"teacher": self.teacher, "encoder": self.encoder}

    def pooling(self) -> Literal["cls", "mean"]:
        """The mean of the patches, as in I-JEPA's evaluation: no loss reads a class token."""
        return "mean"

    def symptoms(self) -> list[Symptom]:
        advice = "Lower optim.base_lr to a third, or set method.momentum nearer to 1."
        same = "the teacher says nearly the same of all patches: a collapse"
        return [Symptom("target_std", same, advice, at_most=0.1), nothing_explained(clip=1.0)]


@varying
def regression(prediction: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Smooth L1 of predictions and targets [R, D].

    Measures: `explained`, the share of the targets' variance over rows that predictions explain; `target_std`, how
    targets differ, see `feature_std`.
    """
    prediction = prediction.float()
    loss = F.smooth_l1_loss(prediction, targets)
    with torch.no_grad():
        left, spread = (prediction - targets).square().mean(), (targets - targets.mean(0)).square().mean()
        return loss, {"explained": 1 - left / spread, "target_std": feature_std(targets)}
