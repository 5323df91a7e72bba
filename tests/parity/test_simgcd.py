"""SimGCD's losses against numbers of the official code (CVMI-Lab/SimGCD)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close, assert_gradient_at
from torch import Tensor, nn

from unlabeled.nn.curves import Temperature
from unlabeled.transfer.simgcd.loss import Head, Losses

EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
BACKBONE, HEAD, MEMAX = "0.0.", "1.", r"out/loss_memax([\d.]+)$"
WEIGHT = "2"  # of memax in the loss whose gradients are stored


class Step:
    """One step of a set: its network, and what that makes of both views."""

    def __init__(self, golden: Golden) -> None:
        self.golden, self.config, weights = golden, golden.config, golden.under("sd")
        x = torch.cat([golden["in/x1"], golden["in/x2"]])
        own = {name.removeprefix(HEAD): weights[name] for name in weights if name.startswith(HEAD)}
        width, inputs = weights[f"{BACKBONE}weight"].shape
        self.backbone = nn.Linear(inputs, width).to(x.dtype)
        with torch.no_grad():
            for name, parameter in self.backbone.named_parameters():
                parameter.copy_(weights[f"{BACKBONE}{name}"])
        linears = sorted(name for name, tensor in own.items() if name.startswith("mlp.") and tensor.ndim == 2)
        hidden, bottleneck = len(own[linears[0]]), len(own[linears[-1]])
        self.head = Head(width, len(own["last_layer.weight_v"]), hidden, bottleneck, len(linears)).to(x.dtype)
        self.head.load_state_dict(own)
        self.logits, self.projected = self.head(self.backbone(x).tanh())

    def losses(self, memax: float) -> Losses:
        c = self.config
        return Losses(
            c.get("sup_weight", 0.35),
            memax,
            c.get("student_temp", 0.1),
            c.get("contrastive_temperature", 1.0),
            c.get("supcon_temperature", 0.07),
        )

    def temperature(self, epoch: int) -> float:
        c = self.config
        start = c.get("warmup_teacher_temp", c.get("teacher_temp_at_epoch_0", 0.07))
        return Temperature(start, c.get("teacher_temp", 0.04), c.get("warmup_teacher_temp_epochs", 30)).at(epoch, 1)

    def terms(self, epoch: int) -> dict[str, Tensor]:
        rows = self.golden["in/labelled"].nonzero().flatten()
        logits, projected = (x.unflatten(0, (2, -1)) for x in (self.logits, self.projected))
        return self.losses(0.0).terms(logits, projected, rows, self.golden["in/y"][rows], self.temperature(epoch))


def test_one_step(folder: Path) -> None:
    golden = Golden(folder / "step.safetensors")
    step = Step(golden)
    terms, tolerance = step.terms(0), EXACT[step.logits.dtype]
    found = {"logits": step.logits, "proj": step.projected}
    found |= {"contrastive": terms["contrast"], "supcon": terms["supervised_contrast"]}
    for name, value in found.items():
        assert_close(value, golden[f"out/{name}"], tolerance, name)
    weights = golden.found(MEMAX)
    assert weights, "the set has the loss of no weight of memax"
    for weight in weights:
        loss = step.losses(float(weight)).total(terms)
        assert_close(loss, golden[f"out/loss_memax{weight}"], tolerance, f"loss with memax {weight}")


def test_gradients(folder: Path) -> None:
    golden = Golden(folder / "step.safetensors")
    step = Step(golden)
    step.losses(float(golden.config.get("memax_weight", WEIGHT))).total(step.terms(0)).backward()
    for prefix, module in ((BACKBONE, step.backbone), (HEAD, step.head)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert_gradient_at(parameter.grad, golden, f"grad/{prefix}{name}", EXACT[step.logits.dtype])


def test_the_teacher_sharpens(folder: Path) -> None:
    golden = Golden(folder / "step.safetensors")
    step, official = Step(golden), golden["out/teacher_temps"]
    ours = torch.tensor([step.temperature(epoch) for epoch in range(len(official))], dtype=torch.float64)
    assert_close(ours, official.double(), EXACT[torch.float64], "temperatures by epoch")
    for epoch in golden.found(r"out/cluster_epoch(\d+)$"):
        tolerance = EXACT[step.logits.dtype]
        assert_close(step.terms(int(epoch))["cluster"], golden[f"out/cluster_epoch{epoch}"], tolerance, epoch)


def test_the_targets_are_of_the_other_crop(folder: Path) -> None:
    """Both crops alike: the loss is the cross-entropy of each with itself, which it is not where they differ."""
    step = Step(Golden(folder / "step.safetensors"))
    one = step.logits.unflatten(0, (2, -1))[0].detach()
    projected, rows = step.projected.unflatten(0, (2, -1)), torch.tensor([0])
    found = step.losses(0.0).terms(torch.stack([one, one]), projected, rows, rows, 0.05)["cluster"]
    student = step.losses(0.0).student
    torch.testing.assert_close(found, F.cross_entropy(one / student, (one / 0.05).softmax(-1)))
