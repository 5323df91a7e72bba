"""Features on a plane: UMAP (McInnes, Healy & Melville 2018), or the first two principal components."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.errors import UserError, first_line
from unlabeled.look.components import principal

How = Literal["auto", "umap", "pca"]
FEWEST, NEIGHBOURS, MIN_DIST = 50, 15, 0.1
INSTALL = "pip install umap-learn"


class Plane(NamedTuple):
    """Points [n, 2] float64, and how they were made, in words."""

    points: NDArray[np.float64]
    words: str


def plane(x: Tensor, how: How, seed: int) -> Plane:
    """Put vectors [n, D] on a plane; the same for the same seed.

    `auto` takes UMAP where it is installed and there are at least FEWEST vectors. Raises UserError where `umap` is
    asked for and cannot be had.
    """
    if how == "pca":
        return _components(x, "")
    if len(x) < FEWEST:
        return _components(x, f": UMAP needs at least {FEWEST} pictures, there are {len(x)}")
    if find_spec("umap") is None:
        if how == "umap":
            raise UserError(f"map=umap, but umap-learn is not installed. Run {INSTALL}, or set map=pca.")
        return _components(x, f": umap-learn is not installed ({INSTALL})")
    try:
        return _umap(x, seed)
    except Exception as error:  # it compiles, which fails in ways of its own
        if how == "umap":
            raise UserError(f"map=umap failed: {first_line(error)}. Set map=pca.") from error
        return _components(x, f": UMAP failed with {first_line(error)}")


def _components(x: Tensor, why: str) -> Plane:
    return Plane(principal(x, 2).numpy(), f"the plane is the first two principal components of the features{why}")


def _umap(x: Tensor, seed: int) -> Plane:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        maker = UMAP(n_neighbors=NEIGHBOURS, min_dist=MIN_DIST, metric="cosine", random_state=seed, n_jobs=1)
        points = maker.fit_transform(x.detach().cpu().to(torch.float32).numpy())
    words = f"the plane is UMAP of the features ({NEIGHBOURS} neighbours by cosine, min_dist {MIN_DIST}, seed {seed})"
    return Plane(np.asarray(points, np.float64), f"{words}; only who is near whom means something")
