"""LeJEPA (Balestriero & LeCun 2025; official code rbalestr-lab/lejepa at eddffdd).

Views of a picture predict their mean, and SIGReg holds the embeddings of every view at an isotropic Gaussian, so that
they cannot collapse. There is no teacher, no stop-gradient and no predictor. Where paper and code differ this follows
the code: views are drawn to the mean of all views, not of the global ones alone (`centre: global`), and the quadrature
has 17 knots on [0, 3]. SIGReg's means are taken inside each view, over the pictures of all processes. The example's
linear layer of 512 on top of its network is a field, `embedding`, and not exported. Local crops have 96 px, as in the
code's scripts; its README has 98, for patches of 14. Linear layers in front of a norm have no bias: it would cancel.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import mean_with_gradient, world
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.regions import region
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_balance
from unlabeled.pretrain.symptoms import same_features

GLOBAL = View(
    count=2, scale=(0.3, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=0.5, solarize=0.2
)
LOCAL = GLOBAL.model_copy(update={"count": 6, "size": 96, "scale": (0.05, 0.3)})
SMALL = EncoderConfig(model="vit_small_patch16_224", positions="learned", drop_path=0.1)


class Config(MethodConfig, frozen=True):
    """LeJEPA: defaults are the official code's, with a ViT-S/16."""

    name: Literal["lejepa"] = "lejepa"
    global_view: View = Field(GLOBAL, description="large crops")
    local: View | None = Field(LOCAL, description="small crops; null = none")
    encoder: EncoderConfig = Field(SMALL, description="the network that is kept, of any kind")
    embedding: int | None = Field(
        None, ge=1, description="width of a linear layer between feature and projector; null = none"
    )
    hidden: int = Field(2048, ge=1, description="width inside the projector")
    dim: int = Field(128, ge=2, description="width of the embeddings, the projector's output")
    centre: Literal["all", "global"] = Field(
        "all", description="views are drawn to the mean of all views, or of the global ones (the paper)"
    )
    weight: float | None = Field(
        None, ge=0, le=1, description="of SIGReg, the invariance has the rest; null = 0.05 at batch 256, rescaled"
    )
    slices: int = Field(1024, ge=1, description="random directions of a step, along which embeddings are compared")
    knots: int = Field(17, ge=2, description="points of the integral over frequencies")
    t_max: float = Field(3.0, gt=0, description="the largest frequency")

    title: ClassVar[str] = "LeJEPA"
    crops: ClassVar[dict[str, Crops]] = {"global_view": Crops(count=None), "local": Crops(count=None)}
    paper: ClassVar[Setting] = Setting(batch=256, epochs=100, steps=500_400)
    rules: ClassVar[dict[str, Rule]] = {"weight": Rule(0.05, same_balance)}

    @field_validator("encoder")
    @classmethod
    def _takes_the_views(cls, encoder: EncoderConfig, info: ValidationInfo) -> EncoderConfig:
        views = [view for view in (info.data.get("global_view"), info.data.get("local")) if view is not None]
        if len({view.shape for view in views}) > 1:
            encoder.require(cls.title, any_size=True)
        if views and sum(view.count for view in views) < 2:
            raise ValueError("LeJEPA compares views of a picture, found one: set global_view.count: 2")
        return encoder

    def build(self) -> LeJEPA:
        """A randomly initialised model; its encoder begins as timm has it."""
        return LeJEPA(self.encoder.build(self.global_view.shape), self)


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation (section 4.2): distance of embeddings from N(0, I).

    Along random directions the characteristic function of the embeddings is compared with that of N(0, 1): the
    Epps-Pulley statistic, an integral over frequencies t by the trapezoid rule. It is even in t, so that the half
    [0, t_max] is counted twice.
    """

    t: Tensor  # frequencies [T]
    target: Tensor  # the characteristic function of N(0, 1) there
    weights: Tensor  # of the integral

    def __init__(self, slices: int, knots: int, t_max: float) -> None:
        super().__init__()
        self.slices = slices
        t = torch.linspace(0, t_max, knots)
        target, widths = (-t.square() / 2).exp(), torch.full_like(t, 2 * t_max / (knots - 1))
        widths[[0, -1]] /= 2
        for name, values in (("t", t), ("target", target), ("weights", widths * target)):
            self.register_buffer(name, values, persistent=False)

    def directions(self, width: int, step: int) -> Tensor:
        """Random unit vectors [D, K], other ones in each step, the same on all processes (official `slicing.py`)."""
        device = self.t.device
        drawn = torch.empty(width, self.slices, dtype=self.t.dtype, pin_memory=device.type == "cuda")
        drawn.normal_(generator=torch.Generator().manual_seed(step))
        drawn = drawn.to(device, non_blocking=True)
        return drawn / drawn.norm(dim=0)

    def forward(self, z: Tensor, directions: Tensor) -> Tensor:
        """The statistic of embeddings [V, B, D] for each view and direction [V, K].

        Means are over the pictures of all processes, each view apart; the statistic grows with their number.
        """
        cosine, sine = mean_with_gradient(self.means(z, directions))
        return ((cosine - self.target).square() + sine.square()) @ self.weights * (z.shape[1] * world())

    @region
    def means(self, z: Tensor, directions: Tensor) -> Tensor:
        """Mean cosines and sines of t times the projections [2, V, K, T]: the empirical characteristic function."""
        with exact(z):
            angles = (z.to(directions.dtype) @ directions).unsqueeze(-1) * self.t
        return torch.stack([angles.cos().mean(1), angles.sin().mean(1)])

    def of_point(self, pictures: int) -> Tensor:
        """The statistic of embeddings that are all 0."""
        return (1 - self.target).square() @ self.weights * pictures


class LeJEPA(PretrainMethod):
    """Views predict their mean, and every view's embeddings stay Gaussian."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.config = c = as_in_paper(config)
        self.encoder = encoder
        width = c.embedding or encoder.feature_width
        self.embedding = nn.Linear(encoder.feature_width, width) if c.embedding else nn.Identity()
        self.projector = mlp((width, c.hidden, c.hidden, c.dim), last_norm=False, last_bias=True)
        self.sigreg = SIGReg(c.slices, c.knots, c.t_max)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        # crops of one size go through the encoder together, all of them through the projector
        features = [self.encoder.feature(view.flat()[0]) for view in batch.views]
        pictures, first = len(batch.index), features[0].detach()
        z = self.projector(self.embedding(torch.cat(features))).unflatten(0, (-1, pictures))

        loss, terms = self.objective(z, self.sigreg.directions(z.shape[-1], progress.step))
        of_point = terms["sigreg"] / self.sigreg.of_point(pictures * world())
        measures = {"of_point": of_point, "agreement": agreement(z), "feature_std": feature_std(first)}
        return Output(loss, {**terms, **measures, **contrast(z[0], z[1])}, first[:pictures])

    def objective(self, z: Tensor, directions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of embeddings [V, B, D], the global views first, and its terms."""
        c = self.config
        distance = invariance(z, None if c.centre == "all" else c.global_view.count)
        statistic = self.sigreg(z, directions).mean()
        terms = {"invariance": distance.detach(), "sigreg": statistic.detach()}
        return (1 - c.weight) * distance + c.weight * statistic, terms

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Everything decays: biases, norms and class token too."""
        return True

    def batch_statistics(self) -> tuple[str, ...]:
        return "SIGReg's means over the batch", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        weight = self.config.weight
        apart = Symptom(
            "agreement",
            "two views of a picture are no nearer than those of two pictures: SIGReg has won",
            f"Lower method.weight from {weight:.3g} to {weight / 4:.2g}.",
            at_most=0.02,
        )
        point = Symptom(
            "of_point",
            "the embeddings of all pictures are one point: a collapse",
            f"Raise method.weight from {weight:.3g} to {min(0.5, weight * 4):.2g}, or lower optim.base_lr to a third.",
            at_least=0.98,
        )
        return [apart, point, same_features("set optim.clip=1.0")]


@region
def invariance(z: Tensor, centres: int | None = None) -> Tensor:
    """The mean squared distance of embeddings [V, B, D] from the mean of all views, or of the first `centres`."""
    z = wide(z)
    return (z - z[:centres].mean(0)).square().mean()


@torch.no_grad()
@region
def agreement(z: Tensor) -> Tensor:
    """The share of the variance of embeddings [V, B, D] that is not between views of a picture: 1 when these are equal,
    0 when they are as far apart as any two."""
    z = z.float()
    return 1 - z.var(0).mean() / z.flatten(0, 1).var(0).mean().clamp_min(1e-12)
