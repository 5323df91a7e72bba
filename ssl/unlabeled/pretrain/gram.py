"""Gram anchoring (Siméoni et al. 2025, DINOv3, section 4; facebookresearch/dinov3 at 6876159, `gram_loss.py`).

In long runs class tokens get better while similarities between patches blur. So patches of the student keep the
similarities that they have in an earlier teacher, which sees the same boxes at twice the size and without colours; its
features are resampled to the student's grid before they are normalised. An earlier teacher is the moving average after
a share of the run, taken again at intervals, or the encoder at the start: that of `init` in continued pretraining.
Officially it is read from a checkpoint, and large crops are cut at twice the size and then halved for the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.data.batch.batch import ViewBatch
from unlabeled.data.view.twin import twin
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import gather_with_gradient
from unlabeled.nn.loss.exact import exact
from unlabeled.nn.patches import resize_patches
from unlabeled.nn.regions import region
from unlabeled.nn.teacher import follow_
from unlabeled.pretrain.method import Progress

Pairs = Literal["picture", "batch"]
Negatives = Literal["keep", "drop", "drop_teacher"]


class Gram(BaseModel, frozen=True, extra="forbid"):
    """Gram anchoring: when, to which teacher, and of which similarities; defaults are those of the official 7B."""

    weight: float = Field(2.0, gt=0, allow_inf_nan=False, description="weight of the loss")
    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the run after which it begins, with the moving average of then as the Gram teacher; 0 = "
        "at once, with the encoder of the start, such as that of init",
    )
    every: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the run after which the Gram teacher is the moving average again; null = never"
    )
    times: int | None = Field(None, ge=1, description="how often that happens at most; null = any number of times")
    size: float = Field(2.0, ge=1, le=4, description="side of the Gram teacher's crops over that of the large crops")
    pairs: Pairs = Field("picture", description="similarities of patches of a picture, or of all processes' batches")
    negatives: Negatives = Field(
        "keep", description="negative similarities: as they are, 0 for both, or 0 for the Gram teacher alone"
    )
    normalise: bool = Field(True, description="similarities are cosines, not products")

    def on(self, progress: Progress) -> bool:
        """Whether a step has the loss."""
        return progress.step >= round(self.start * progress.total_steps)

    def renewed(self, progress: Progress) -> bool:
        """Whether after a step the Gram teacher becomes the moving average."""
        done = progress.step + 1 - round(self.start * progress.total_steps)
        if self.every is None or done <= 0:
            return done == 0
        time, rest = divmod(done, max(1, round(self.every * progress.total_steps)))
        return not rest and (self.times is None or time <= self.times)

    def twins(self, views: Sequence[View]) -> tuple[View, ...]:
        """The Gram teacher's views of large ones, which come first among those of an image."""
        return tuple(twin(view, number, self.size) for number, view in enumerate(views))


class GramTeacher(nn.Module):
    """The earlier teacher, as a part of a method; an encoder in which nothing is random."""

    def __init__(self, config: Gram, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder.requires_grad_(False)

    def forward(self, student: Tokens, plain: Sequence[ViewBatch], progress: Progress) -> Tensor | None:
        """The weighted loss of the student's tokens of large crops, view after view, from the crops of `Gram.twins`;
        None = a step has none."""
        if not self.config.on(progress):
            return None
        with torch.no_grad():
            tokens = self.encoder(torch.cat([view.flat()[0] for view in plain]))
            target = resize_patches(tokens.patches.float(), tokens.grid, student.grid, "bicubic")
        c = self.config
        return c.weight * gram(student.patches, target, c.pairs, c.negatives, c.normalise)

    @torch.no_grad()
    def after_step(self, teacher: Encoder, progress: Progress) -> None:
        """Become the moving average `teacher` where it is time for it; a skipped step has left that as it was."""
        if self.config.renewed(progress):
            follow_(self.encoder, teacher)


def gram(
    student: Tensor,
    teacher: Tensor,
    pairs: Pairs = "picture",
    negatives: Negatives = "keep",
    normalise: bool = True,
) -> Tensor:
    """The mean squared difference between similarities of patches [B, N, D] of student and teacher (equation 2).

    All pairs count, a patch with itself too. The gradient is the student's. Pairs of a batch are those of this process'
    patches with the patches of all processes (officially of one GPU).
    """
    student, teacher = student.float(), teacher.detach().float()
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if pairs == "picture":
        return _difference(student, student, teacher, teacher, negatives)
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    return _difference(student, gather_with_gradient(student), teacher, gather_with_gradient(teacher), negatives)


@region
def _difference(student: Tensor, students: Tensor, teacher: Tensor, teachers: Tensor, negatives: Negatives) -> Tensor:
    with exact(student):
        ours, theirs = student @ students.mT, teacher @ teachers.mT
        if negatives != "keep":
            theirs = theirs.clamp_min(0)
        return F.mse_loss(ours.clamp_min(0) if negatives == "drop" else ours, theirs)
