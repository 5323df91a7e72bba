"""The collapses that are known, each by the value that gives it away. Methods pick theirs in `Method.symptoms`."""

from __future__ import annotations

import math
from typing import Any

from unlabeled.pretrain.method import Symptom


def uniform_teacher(prototypes: int, temperature: float) -> Symptom:
    """The teacher's entropy is ln K: a distillation whose targets say nothing (DINO, section 5.3)."""
    return Symptom(
        "teacher_entropy",
        f"the teacher says the same of all pictures, its entropy is ln {prototypes}: a collapse",
        f"Lower method.teacher_temperature from {temperature:g} to {min(0.04, temperature / 2):g}, "
        "or optim.base_lr to a third.",
        at_least=0.995 * math.log(prototypes),  # a reading is an average over steps, so no value is reached exactly
    )


def one_prototype(centre_momentum: float) -> Symptom:
    """The mean target has no entropy: all pictures have the same prototype, which is what centring prevents."""
    return Symptom(
        "mean_entropy",
        "the teacher gives all pictures the same one or two prototypes: a collapse",
        f"Lower method.centre_momentum from {centre_momentum:g} to {min(0.9, centre_momentum / 2):g}, "
        "or raise method.teacher_temperature_start to 0.04 or more.",
        at_most=math.log(2),
    )


def same_features(instead: str) -> Symptom:
    """Features have no variance; `instead` is a cure beside a lower learning rate."""
    return Symptom(
        "feature_std",
        "all pictures get nearly the same features: a collapse",
        f"Lower optim.base_lr to a third, or {instead}.",
        at_most=0.1,  # cosines of 0.99: pictures that differ have fewer, at the start too; 0.14 was seen in good runs
    )


def blind(instead: str) -> Symptom:
    """Predictions are no nearer to their own picture's target than to others'; `instead` is another cure."""
    return Symptom(
        "told_apart",
        "predictions fit the other pictures as well as their own: nothing is learnt",
        f"Lower optim.base_lr to a third, or {instead}.",
        at_most=0.05,
    )


def of_self_distillation(config: Any, centred: bool) -> list[Symptom]:
    """The ways in which DINO and iBOT collapse, as their settings tell."""
    calm = same_features("set optim.clip=0.3 and optim.clip_by=tensor")
    if config.coding_rate is not None:
        return [nothing_apart(config.coding_rate.weight), calm]
    uniform = uniform_teacher(config.head.prototypes, config.teacher_temperature)
    return [uniform, *([one_prototype(config.centre_momentum)] if centred else []), calm]


def nothing_apart(weight: float) -> Symptom:
    """The coding rate is that of equal rows: SimDINO's agreement has won."""
    return Symptom(
        "spread",
        "all pictures get nearly the same vectors, which the coding rate should keep apart: a collapse",
        f"Lower method.coding_rate.weight from {weight:g} to {weight / 2:g}, or optim.base_lr to a third.",
        at_most=1.5,  # cosines of 0.999
    )


def uniform_targets(prototypes: int, instead: str) -> Symptom:
    """Pictures are assigned to all prototypes alike, the loss is ln K (SwAV, MSN); `instead` is a cure beside a lower
    learning rate."""
    return Symptom(
        "teacher_entropy",
        f"pictures are assigned to all prototypes alike, the loss is ln {prototypes}: a collapse",
        f"Lower optim.base_lr to a third, or {instead}.",
        at_least=0.995 * math.log(prototypes),
    )


def few_prototypes() -> Symptom:
    """Nearly all targets are the same few prototypes."""
    return Symptom(
        "prototypes",
        "all pictures are assigned to a twentieth of the prototypes: a collapse",
        "Lower optim.base_lr to a third, or take fewer prototypes (method.prototypes).",
        at_most=0.05,
    )


def chance() -> Symptom:
    """A contrastive loss of ln N, or 2 tau ln N per term as MoCo v3 scales it: what blind guessing gets."""
    return Symptom(
        "of_chance",
        "views find each other no better than chance: nothing is learnt",
        "Lower optim.base_lr to a third, or warm up longer (optim.warmup_epochs).",
        at_least=0.98,
    )


def nothing_explained(clip: float) -> Symptom:
    """A reconstruction as good as the mean of its targets: (P - 1) / P for normalised patches of P values."""
    return Symptom(
        "explained",
        "predictions are no better than the mean of the targets: nothing is learnt",
        f"Lower optim.base_lr to a third, or set optim.clip={clip:g}.",
        at_most=0.02,
    )
