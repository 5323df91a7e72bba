"""Heads by cosines: several proxies of each class (PODNet), or one in each of several spaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.nn.loss.exact import wide


class LocalSimilarity(nn.Module):
    """Similarity of features to the proxies of each class, times a scale (PODNet, Douillard et al. 2020, equation 8).

    Proxies of classes known before are a parameter of their own, `known`, so that they can rest.

    Args:
        width: of the features.
        new: classes that come.
        proxies: of each class.
        before: the head of the task before, whose proxies and scale it keeps.
    """

    known: nn.Parameter | None

    def __init__(self, width: int, new: int, proxies: int, before: LocalSimilarity | None = None) -> None:
        super().__init__()
        self.proxies = proxies
        self.register_parameter("known", None if before is None else nn.Parameter(before.weights.detach().clone()))
        self.coming = nn.Parameter(torch.empty(new * proxies, width))
        nn.init.kaiming_normal_(self.coming, nonlinearity="linear")
        self.scale: nn.Parameter = nn.Parameter(torch.ones(()) if before is None else before.scale.detach().clone())

    @property
    def weights(self) -> Tensor:
        """Proxies [classes * P, D]; those of class k are rows k P .. k P + P - 1."""
        return self.coming if self.known is None else torch.cat([self.known, self.coming])

    def raw(self, features: Tensor) -> Tensor:
        """Minus the squared distances of unit vectors, 2 cos - 2: [B, D] to [B, classes * P]."""
        x = wide(features)
        return 2 * F.linear(F.normalize(x, dim=1), F.normalize(self.weights, dim=1)) - 2

    def similarities(self, features: Tensor) -> Tensor:
        """[B, D] to [B, classes]: the proxies of a class weighted by the softmax of their similarities."""
        return weighted(self.raw(features), self.proxies)

    def forward(self, features: Tensor) -> Tensor:
        """Similarities times the scale, [B, classes]."""
        return self.scale * self.similarities(features)


def weighted(raw: Tensor, proxies: int) -> Tensor:
    """sum_p softmax_p(raw_kp) raw_kp of raw similarities [B, classes * P]: [B, classes]."""
    each = raw.unflatten(1, (-1, proxies))
    return (each.softmax(2) * each).sum(2)


class Cosines(nn.Module):
    """Cosines of the features of several spaces with a proxy of each class in each, weighted, times a fixed scale.

    Args:
        width: of the features of all spaces side by side, equally wide.
        classes: known at the end of the task.
        weights: one for each space.
        scale: of the logits.
        before: the head of the task before, whose proxies it keeps.
    """

    def __init__(
        self, width: int, classes: int, weights: Sequence[float], scale: float, before: Cosines | None = None
    ) -> None:
        super().__init__()
        self.shares, self.scale = tuple(weights), scale
        self.proxies = nn.Parameter(torch.empty(len(weights), classes, width // len(weights)))
        nn.init.normal_(self.proxies)
        if before is not None:
            with torch.no_grad():
                self.proxies[:, : before.proxies.shape[1]] = before.proxies

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] to logits [B, classes]."""
        spaces = zip(self.shares, wide(features).chunk(len(self.shares), dim=1), self.proxies, strict=True)
        cosines = [share * F.linear(F.normalize(x, dim=1), F.normalize(p, dim=1)) for share, x, p in spaces]
        return self.scale * torch.stack(cosines).sum(0)
