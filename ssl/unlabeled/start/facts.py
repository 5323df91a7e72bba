"""What the rules of `unlabeled start` decide by: the pictures, the machine and what is at hand, a value each."""

from __future__ import annotations

from typing import Literal, NamedTuple

Labels = Literal["none", "splits", "flat", "albums", "elsewhere"]
Kind = Literal["none", "sized", "free"]


class Facts(NamedTuple):
    """Everything that a rule may name.

    Attributes:
        pictures: to learn from.
        side: short side of the median picture, pixels.
        channels: 1, 3 or more, as they are read.
        grey: whether pictures are stored as RGB and have no colours.
        wide: whether values have more than 8 bits.
        plain: whether mean and standard deviation are near those of ImageNet.
        labels: where labels are: `splits` = class folders in train and val, `flat` = class folders alone, `albums` =
            folders that do not look like classes, `elsewhere` = at --labels.
        classes: number of classes; 0 = no labels.
        each: labelled pictures of the median class.
        device: cpu, cuda or mps.
        gpus: number of GPUs.
        memory: of one GPU, or of the machine, GB.
        bf16: whether the GPU computes in bfloat16.
        cores: CPU cores that may be used.
        minutes: that pretraining may take.
        weights: of which network weights are at hand: `sized` = with positions that belong to a size, `free` = without.
        millions: parameters of that network.
    """

    pictures: int
    side: int
    device: str
    cores: int
    minutes: float
    channels: int = 3
    grey: bool = False
    wide: bool = False
    plain: bool = True
    labels: Labels = "none"
    classes: int = 0
    each: int = 0
    gpus: int = 0
    memory: float = 16
    bf16: bool = False
    weights: Kind = "none"
    millions: float = 0

    @property
    def core_minutes(self) -> float:
        """CPU time that pretraining may take."""
        return self.cores * self.minutes
