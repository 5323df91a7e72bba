"""UNO's targets and objective against numbers of the official code (DonkeyShot21/UNO), by functions that are here.

UNO itself is not built, nor are two other methods of which numbers exist, and no test reads those:

- RankStats (`rankstats`): all of it, the losses and gradients of both of its steps, pairs whose largest features agree,
  the ramp of its consistency. Its pairs are what clusters of `unlabeled discover` replace.
- ORE (`ore`): densities of energies and clustering inside a detector, `out/p_known`, `out/p_unknown`, `out/clustering`
  and its gradient. They are fitted on labels of the unknown classes. The energy itself is an input there; it is
  `unlabeled.evaluate.openset_scores.energy`, which test_ood compares.
"""

from __future__ import annotations

from pathlib import Path

import torch
from parity.golden import Golden, assert_close, assert_gradient_at
from parity.vit import BACKWARD, FORWARD

from unlabeled.nn.loss.prototypes import cross_view
from unlabeled.nn.loss.sinkhorn import sinkhorn


def test_assignments(folder: Path) -> None:
    golden = Golden(folder / "targets.safetensors")
    c = golden.config
    found = sinkhorn(golden["in/cosines"], c.get("epsilon", 0.05), c.get("iterations", 3))
    assert_close(found.double(), golden["out/assignments"], FORWARD, "assignments")  # computed in float32


def test_swapped_prediction(folder: Path) -> None:
    """A head's loss is the mean over pairs of views; small crops give no targets."""
    golden = Golden(folder / "targets.safetensors")
    c, logits = golden.config, golden["in/logits"].requires_grad_()
    targets = golden["in/targets"][: c.get("num_large_crops", 2)]
    loss = torch.stack([cross_view(logits[:, h], targets[:, h], c.get("T", 0.1)) for h in range(logits.shape[1])])
    loss.mean().backward()
    assert_close(loss.double(), golden["out/loss"], FORWARD, "loss of each head")
    assert_gradient_at(logits.grad, golden, "grad/logits", BACKWARD)
