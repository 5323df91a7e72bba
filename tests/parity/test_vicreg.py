"""VICReg against numbers of the official code (facebookresearch/vicreg)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity.given import Given, batch_of, given, mlp_widths
from parity.golden import Golden, assert_close, assert_gradient_at
from parity.vit import BACKWARD, FORWARD, START, assert_gradients

from unlabeled.nn.heads import mlp
from unlabeled.pretrain.methods.vicreg import Config, VICReg


def build(golden: Golden) -> Any:
    widths, c, nobody = mlp_widths(golden, "sd/projector."), golden.config, Given()
    config = Config(
        hidden=widths[1],
        dim=widths[-1],
        expander_layers=len(widths) - 1,
        invariance=c.get("sim", 25.0),
        variance=c.get("std", 25.0),
        covariance=c.get("cov", 1.0),
    )
    model = VICReg(nobody, widths[0], config)  # type: ignore[arg-type]
    if len(set(widths[1:-1])) > 1:  # officially each layer has a width of its own
        model.projector = mlp(widths, last_norm=False, hidden_bias=True)
    model.load_state_dict(dict(golden.under("sd")))
    return given(model)


def test_terms_loss_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    model = build(golden)
    features = [golden[f"in/features{i}"].requires_grad_() for i in (1, 2)]
    output = model(batch_of(*(x[None, ..., None, None] for x in features)), START)
    assert_close(output.loss, golden["out/loss"], FORWARD, "loss")
    for term in ("invariance", "variance", "covariance"):
        assert_close(output.metrics[term], golden[f"out/{term}"], FORWARD, term)
    output.loss.backward()
    for i, x in enumerate(features, 1):
        assert_gradient_at(x.grad, golden, f"grad/features{i}", BACKWARD)
    official = golden.some("grad")
    named = {name: official[name] for name in official if not name.startswith("features")}
    # a bias before batch normalisation shifts all rows alike, which the norm takes out
    linears = [name for name in named if name.endswith(".bias") and f"{name[:-4]}weight" in golden.under("sd")]
    before_norms = [name for name in linears if len(golden.shape(f"sd/{name[:-4]}weight")) == 2]
    assert_gradients(model, named, str, before_norms)
