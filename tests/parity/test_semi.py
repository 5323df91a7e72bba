"""Learning from unlabelled pictures against numbers of official code (microsoft/Semi-supervised-learning).

SoftMatch's are compared by nobody: it is not built, see `test_whole.NOT_BUILT`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close
from torch import Tensor

from unlabeled.transfer.threshold import Threshold
from unlabeled.transfer.thresholds import adaptive, fixed
from unlabeled.transfer.unlabelled import Consistency, Unlabelled

EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
REMEMBERED = {"time_p": "tau", "p_model": "mean", "label_hist": "histogram"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per threshold; a set that lacks one of the two files fails."""
    metafunc.parametrize("case", ["fixmatch", "freematch"])


def built(golden: Golden, case: str) -> Consistency:
    """The loss with the set's settings, before its first step."""
    c, (rows, classes) = golden.config, golden.shape("in/weak0")
    weight = c.get("lambda_u", 1.0)
    threshold: Threshold = fixed.Config(cutoff=c.get("p_cutoff", 0.95))
    if case == "freematch":
        assert not c.get("use_quantile", False), "the threshold follows the mean; its quantile is not built"
        # officially the weight of the whole does not reach this term
        threshold = adaptive.Config(momentum=c.get("m", 0.999), fairness=c.get("lambda_e", 0.01) / weight)
    config = Unlabelled(ratio=rows // golden.shape("in/labelled0")[0], weight=weight, threshold=threshold)
    before = torch.get_default_dtype()
    torch.set_default_dtype(golden["in/weak0"].dtype)  # averages start at 1 / C, which single precision rounds
    try:
        return Consistency(config, classes).train()
    finally:
        torch.set_default_dtype(before)


def test_every_step(folder: Path, case: str) -> None:
    golden = Golden(folder / f"{case}.safetensors")
    model, masks = built(golden, case), list[Tensor]()
    model.gate.register_forward_hook(lambda _module, _inputs, passed: masks.append(passed))
    for step in sorted(int(number) for number in golden.found(r"in/weak(\d+)$")):
        labelled, strong = golden[f"in/labelled{step}"], golden[f"in/strong{step}"].requires_grad_()
        tolerance = EXACT[strong.dtype]
        loss, metrics = model(golden[f"in/weak{step}"], strong, None)
        loss = F.cross_entropy(labelled, golden[f"in/y{step}"]) + loss
        loss.backward()
        assert strong.grad is not None
        found = {"out/mask": masks[-1].to(strong.dtype), "out/unsup": metrics["consistency"], "out/loss": loss}
        found |= {f"out/{name}": getattr(model.gate, own) for name, own in REMEMBERED.items() if case == "freematch"}
        for name, value in found.items():
            assert_close(value, golden[f"{name}{step}"], tolerance, f"{name}{step}")
        if f"grad/strong{step}" in golden:  # a set may leave gradients out
            assert_close(strong.grad, golden[f"grad/strong{step}"], tolerance, f"grad/strong{step}")
