"""MSN's losses against numbers of the official code (facebookresearch/msn)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD

from unlabeled.backbone.config import EncoderConfig
from unlabeled.pretrain.methods.msn import MSN, Config

TINY = EncoderConfig(model="vit_tiny_patch16_224", patch_size=56, width=8, depth=1, heads=1, positions="learned")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per kind of target of whatever set is given, as its names tell."""
    golden = peek(metafunc.config, "msn", "loss.safetensors")
    metafunc.parametrize("case", (golden and golden.found(r"out/(\w+)_loss$")) or ["absent"])


def model_of(golden: Golden, balanced: bool) -> MSN:
    """The method with the set's prototypes; nothing here is of its encoder."""
    c, (prototypes, dim) = golden.config, golden.shape("in/prototypes")
    config = Config(
        focal=None,
        encoder=TINY,
        hidden=4,
        dim=dim,
        prototypes=prototypes,
        temperature=c.get("tau", 0.1),
        sharpening=c.get("T", 0.25),
        iterations=c.get("it", 3) if balanced else 0,
    )
    model = config.build()
    with torch.no_grad():
        model.prototypes.copy_(golden["in/prototypes"])
    return model


def test_losses_targets_and_gradients(folder: Path, case: str) -> None:
    """`sinkhorn` are balanced targets, others are sharpened alone."""
    golden = Golden(folder / "loss.safetensors")
    model, targets = model_of(golden, balanced="sinkhorn" in case), golden["in/targets"]
    anchors = golden["in/anchors"].requires_grad_()
    views = anchors.unflatten(0, (-1, len(targets)))
    found = model.compare(views, targets)
    (found.cross_entropy + found.memax).backward()
    assert_close(found.cross_entropy, golden[f"out/{case}_loss"], FORWARD, "cross-entropy")
    assert_close(found.memax, golden[f"out/{case}_memax"], FORWARD, "me-max")
    assert_close(found.targets.repeat(len(views), 1), golden[f"out/{case}_targets"], FORWARD, "targets")
    if f"out/{case}_entropy" in golden:  # the official code computes it where it is asked to
        assert_close(found.entropy, golden[f"out/{case}_entropy"], FORWARD, "entropy")
    assert_gradient_at(anchors.grad, golden, f"grad/{case}_anchors", BACKWARD)
    assert_gradient_at(model.prototypes.grad, golden, f"grad/{case}_prototypes", BACKWARD)
