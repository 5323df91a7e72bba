"""SimGCD's head and losses (Wen, Zhao and Qi 2023, section 4; official `train.py` and `model.py`).

One classifier has a prototype for each known class and each new one. Labelled pictures teach it their classes; of every
picture one crop teaches the other what the classifier says of it. The mean prediction is kept even, so that no cluster
swallows the others.

Every process has as many labelled pictures: the mean over processes of its supervised terms is that over all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.nn.collectives import gather, gather_with_gradient, mean_over_processes, mean_with_gradient, rank
from unlabeled.nn.heads import DistillHead, Prototypes
from unlabeled.nn.loss.contrast import nt_xent
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.loss.prototypes import cross_view, soft_cross_entropy
from unlabeled.nn.mixing import Mix, mix_targets, neighbours

SURE = 0.9  # probability from which on a cluster is taken for a label where pictures are mixed


class Head(nn.Module):
    """Prototypes on unit features of the backbone, and an MLP that serves contrast alone (official `DINOHead`).

    Args:
        width: of the features.
        classes: known and new ones, K.
        hidden: width of the MLP.
        bottleneck: of its output.
        layers: linear layers of the MLP.
    """

    def __init__(self, width: int, classes: int, hidden: int = 2048, bottleneck: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.mlp = DistillHead(width, None, hidden, bottleneck, layers).mlp
        self.last_layer = Prototypes(width, classes, freeze_gain=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [..., K] with the prototypes, and projections [..., bottleneck], of features [..., width]."""
        return self.logits(features), self.mlp(features)

    def logits(self, features: Tensor) -> Tensor:
        """Cosines [..., K] of features [..., width] with the prototypes."""
        found: Tensor = self.last_layer(F.normalize(features, dim=-1))
        return found


class Losses(NamedTuple):
    """Weights and temperatures of the loss."""

    supervised: float = 0.35  # weight of the two supervised terms; the others have the rest
    memax: float = 2.0  # weight of the evenness of the mean prediction, within the rest
    student: float = 0.1  # temperature of the classifier
    contrast: float = 1.0  # temperature of the contrast of all pictures
    supervised_contrast: float = 0.07  # temperature of that of labelled ones

    def terms(
        self, logits: Tensor, projected: Tensor, rows: Tensor, labels: Tensor, teacher: float
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each without its weight.

        Args:
            logits: cosines [2, B, K] of two crops of each picture.
            projected: [2, B, D] for contrast.
            rows: [n] int64, which pictures are labelled; at least one.
            labels: [n] int64 of those.
            teacher: temperature of what one crop teaches the other.
        """
        logits, projected = wide(logits), wide(projected)
        targets = taught(logits, teacher)
        known = (logits[:, rows] / self.student).flatten(0, 1)
        return {
            "cluster": cross_view(logits, targets, self.student),
            "memax": unevenness(self.mean_prediction(logits)),
            "contrast": nt_xent(projected[0], projected[1], self.contrast),
            "supervised": F.cross_entropy(known, labels.repeat(2)),
            "supervised_contrast": class_contrast(
                projected[0, rows], projected[1, rows], labels, self.supervised_contrast
            ),
        }

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of terms."""
        alone = terms["cluster"] + self.memax * terms["memax"] + terms["contrast"]
        return (1 - self.supervised) * alone + self.supervised * (terms["supervised"] + terms["supervised_contrast"])

    def mean_prediction(self, logits: Tensor) -> Tensor:
        """The classifier's mean probabilities [K] over crops and pictures [2, B, K] of all processes."""
        return mean_with_gradient((wide(logits) / self.student).softmax(-1).mean((0, 1)))

    def mixed(self, logits: Tensor, taught: Tensor, rows: Tensor, labels: Tensor, mix: Mix) -> Tensor:
        """The loss of pictures that are mixed with their neighbours, by the classes of both (after OpenMix, Zhong et
        al. 2021): labelled with unlabelled ones, and unlabelled ones with each other where both are sure of a cluster.

        The mean is over all pictures, a fixed number.

        Args:
            logits: of the mixed pictures [B, K].
            taught: probabilities of the pictures themselves [B, K], without gradient; a label takes their place.
            rows, labels: see `terms`.
            mix: how they are mixed.
        """
        targets = taught.index_copy(0, rows, F.one_hot(labels, taught.shape[1]).to(taught.dtype))
        known = torch.zeros(len(taught), dtype=torch.bool, device=taught.device).index_fill(0, rows, True)
        sure = targets.amax(-1) > SURE
        counts = known | neighbours(known) | (sure & neighbours(sure))
        return (counts * soft_cross_entropy(wide(logits), mix_targets(targets, mix), self.student)).mean()

    @torch.no_grad()
    def measures(self, logits: Tensor) -> dict[str, Tensor]:
        """How pictures [2, B, K] of all processes are spread over clusters: the share of the largest, in percent, and
        the entropy of the mean prediction, in nats (log K at most)."""
        taken = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(wide(logits).dtype).mean((0, 1))
        return {
            "cluster_largest": 100 * mean_over_processes(taken).max(),
            "cluster_entropy": torch.special.entr(self.mean_prediction(logits)).sum(),
        }


def taught(logits: Tensor, temperature: float) -> Tensor:
    """What logits [..., K] teach: probabilities without gradient."""
    return (wide(logits.detach()) / temperature).softmax(-1)


def unevenness(p: Tensor) -> Tensor:
    """log K - entropy of probabilities [K]: 0 where all are equal (the paper's mean-entropy maximisation)."""
    return math.log(len(p)) - torch.special.entr(p).sum()


def class_contrast(a: Tensor, b: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of two views a, b [n, D] of pictures with labels [n] (Khosla et al. 2020, equation 2).

    The positives of a view are its other one and both views of all pictures of its class, of all processes; the mean
    over the views of this process.
    """
    with exact(a):
        a, b = (F.normalize(wide(view), dim=-1) for view in (a, b))
        keys = torch.cat([gather_with_gradient(a), gather_with_gradient(b)])
        classes = gather(labels).repeat(2)
        own = torch.arange(len(a), device=a.device) + len(a) * rank()
        itself = F.one_hot(torch.cat([own, own + len(classes) // 2]), len(classes)).bool()
        shares = (torch.cat([a, b]) @ keys.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1)
        positive = (labels.repeat(2).unsqueeze(1) == classes) & ~itself
        return -(shares.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1)).mean()
