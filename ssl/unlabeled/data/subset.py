"""A share of the labelled samples, the same for everybody who asks with the same seed."""

from __future__ import annotations

import numpy as np

from unlabeled.errors import UserError

SUBSET_STREAM = 0x5B5E


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The same share of every class, at least one sample of each; smaller shares are inside larger ones.

    Args:
        labels: [n] int64; samples with label -1 are never chosen.
        fraction: share of each class, in (0, 1], rounded to whole samples.
        seed: which samples; not negative.

    Returns:
        Sorted indices into `labels`, int64. They depend on nothing but the arguments.

    Raises:
        UserError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"expected a label fraction in (0, 1], found {fraction}. Write 1 % as 0.01.")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SUBSET_STREAM))))

    # classes one after the other, each shuffled; the first few of each class are its share
    order = np.lexsort((rng.random(len(labels)), labels))
    classes, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    share = np.where(classes < 0, 0, np.maximum(1, np.rint(fraction * count)))
    place = np.arange(len(labels)) - np.repeat(first, count)
    return np.sort(order[place < np.repeat(share, count)])
