"""Continued pretraining: an encoder that has learnt already learns on, and does not forget.

New heads say nothing yet, and their gradients ruin a good encoder within a few thousand images (facebookresearch/dinov2
issue 204: k-NN 80 -> 10 %). So heads learn first, while the encoder is held; then its rate climbs to a low one, lower
still for lower layers (or low-rank additions learn in its place), and a teacher follows slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field
from torch import nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.lowrank import LowRank
from unlabeled.nn.lowrank import ADDED
from unlabeled.pretrain.rescale import Config, Rescaled
from unlabeled.recipe.free import FREE

MOMENTUM = 0.999  # of a teacher that begins well, at least
Share = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Continued(BaseModel, frozen=True, extra="forbid"):
    """A recipe's `continued:` section: how the encoder of `init` learns on."""

    hold: Share = Field(
        0.1,
        description="share of the run in which heads alone learn and the encoder is held, in evaluation mode; then its "
        "rate climbs from 0 over as long again",
    )
    rate: Factor = Field(0.1, description="the encoder's learning rate as a share of the heads'")
    layer_decay: Factor = Field(0.9, description="factor on it per layer, or stage of a CNN, from the top down")
    momentum: float = Field(MOMENTUM, ge=0, le=1, description="smallest momentum of a teacher at the start")
    lora: LowRank | None = Field(
        None, description="low-rank additions learn in place of the encoder's weights, merged at export; null = none"
    )
    keep: Annotated[Literal["best", "last"], FREE] = Field(
        "best",
        description="the encoder that is exported: that with the best score of `evaluate`, the one at the start among "
        "them, or the last",
    )

    def slowed(self, config: Config, rescaled: Sequence[Rescaled]) -> tuple[Config, list[Rescaled]]:
        """Settings of a method with at least this momentum of a teacher, and the lines of the plan that say so."""
        found = momentum_of(config)
        if found is None or found >= self.momentum:
            return config, list(rescaled)
        why = "continued.momentum: a teacher that begins well follows slowly"
        others = [line for line in rescaled if line.field != "method.momentum"]
        paper = config.rules["momentum"].value if "momentum" in config.rules else found
        note = Rescaled("method.momentum", paper, self.momentum, why)
        return config.model_copy(update={"momentum": self.momentum}), [*others, note]

    def in_words(self, steps: int) -> str:
        """A line of the plan of a run of so many steps."""
        held = f"heads alone for {round(self.hold * steps):,} steps, " if self.hold else ""
        added = "" if self.lora is None else f", low-rank additions of rank {self.lora.rank}"
        return f"{held}then the encoder at {self.rate:g} x the heads' rate, {self.layer_decay:g} per layer{added}"


class Continuation:
    """The state of one method under `Continued`: a pure function of the share of the run that is done.

    Args:
        settings: of the recipe.
        encoders: of the method, teachers among them, by the prefix of their parameters' names.
    """

    def __init__(self, settings: Continued, encoders: Mapping[str, Encoder]) -> None:
        self.settings, self._all = settings, tuple(encoders.values())
        self._learning = {
            prefix: encoder
            for prefix, encoder in encoders.items()
            if any(p.requires_grad for p in encoder.parameters())
        }
        if settings.lora is not None:
            for encoder in self._learning.values():
                settings.lora.wrap_(encoder.vit, type(encoder), "continued.lora", "Set continued.lora=null.")
                for name, parameter in encoder.named_parameters():
                    parameter.requires_grad_(name.endswith(ADDED))

    def scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter, by its name in the method."""
        for prefix, encoder in self._learning.items():
            if name.startswith(prefix):
                below = encoder.depth + 1 - encoder.layer_of(name.removeprefix(f"{prefix}vit."))
                return self.settings.rate * self.settings.layer_decay**below
        return 1.0

    def climb(self, name: str) -> tuple[float, float] | None:
        """The shares of the run between which the rate of a parameter climbs from 0; None = it has its rate at once."""
        hold = self.settings.hold
        return (hold, 2 * hold) if hold and name.startswith(tuple(self._learning)) else None

    def held(self, share: float) -> Iterator[nn.Parameter]:
        """Parameters without a gradient or an update when a share of the run is done."""
        if share < self.settings.hold:
            for encoder in self._learning.values():
                yield from encoder.parameters()

    def set_modes_(self, share: float) -> None:
        """Put held encoders and their teachers in evaluation mode: no drop path, running statistics as they were."""
        learns = share >= self.settings.hold
        for encoder in self._all:
            if encoder.training != learns:
                encoder.train(learns)


class Caution(NamedTuple):
    """A setting that ruins pretrained weights, or hides that it does.

    Attributes:
        code: its name, for machines.
        text: the value found and the value expected.
        advice: the field to change.
    """

    code: str
    text: str
    advice: str


def momentum_of(config: BaseModel) -> float | None:
    """The momentum of a method's teacher, which all methods call so; None = it has no teacher."""
    return dict(config).get("momentum")


def advice(settings: Continued | None) -> str:
    """The fields to change where an encoder becomes worse than it was."""
    if settings is None:
        return "Set continued={} (heads first, a low rate for the encoder, a slow teacher)."
    lower = f"Lower continued.rate from {settings.rate:g} to {settings.rate / 3:.2g}"
    return f"{lower}{'' if settings.lora else ', or set continued.lora={}'}."


def cautions(
    settings: Continued | None,
    config: BaseModel,
    peak: float,
    gentle: float | None,
    new: Sequence[str] = (),
    steps: int | None = None,
) -> Iterator[Caution]:
    """Settings of a run from scratch where a run begins with an encoder that has learnt.

    Args:
        settings: of the recipe; None = it has no such section.
        config: of the method, with the values of this run.
        peak: learning rate after warm-up.
        gentle: the highest of the optimizer at which pretrained weights learn on; None = it is not known.
        new: parts of the method that do not begin with learnt weights.
        steps: of the run: a teacher that remembers a quarter of them is slow; None = many.
    """
    rate = peak if settings is None else peak * settings.rate
    if gentle is not None and rate > gentle:
        field = "continued={rate: %.2g}" if settings is None else "continued.rate=%.2g"
        text = (
            f"the encoder of init would learn at a rate of {rate:.3g}, as if from scratch: at most {gentle:g} is usual"
        )
        yield Caution("fast_encoder", text, f"set {field % (gentle / peak)}, or lower optim.base_lr")
    found = momentum_of(config)
    slow = MOMENTUM if steps is None else min(MOMENTUM, 1 - 4 / steps)
    if found is not None and found < slow:
        text = f"the teacher's momentum is {found:.4g}, as if from scratch: at least {slow:.4g} keeps what init knows"
        field = "method.momentum" if settings is None else "continued.momentum"
        yield Caution("fast_teacher", text, f"set {field}={slow:.4g}")
    if new and (settings is None or not settings.hold):
        text = f"{', '.join(new)} and the encoder of init learn at once: gradients of parts that are new ruin it"
        yield Caution(
            "nothing_held", text, f"set {'continued={hold: 0.1}' if settings is None else 'continued.hold=0.1'}"
        )
