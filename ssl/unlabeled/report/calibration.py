"""Calibration: confidence against accuracy (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15  # as in the paper


class Reliability(NamedTuple):
    """Images in M bins of equal width by the probability of the predicted class, (0, 1/M] first.

    Attributes:
        counts: [M] int64.
        accuracy: [M] float64, share that is correct; 0 in an empty bin.
        confidence: [M] float64, mean probability of the predicted class; 0 in an empty bin.
    """

    counts: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1] (equation 3): mean distance of accuracy and confidence."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """Sort images into bins, by the probability of the predicted class [n]; `correct` [n] says whether it is right."""
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(place, values, minlength=bins) / counts.clamp(min=1)

    return Reliability(counts, mean(correct.double()), mean(confidence))
