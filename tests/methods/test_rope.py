"""Methods with rotary positions: hidden patches, processes, resuming, and a GPU that nobody waits for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from every_method import LAST, QUIET, SMALL, START, batch_of, build, on_a_gpu, recipe_file, share_of
from support import UNSHOWN, assert_close_weights, checkpoint_bytes, launch, metrics, on_processes
from torch import Tensor

from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.nn.collectives import mean_over_processes
from unlabeled.train.state import split_heads

SIZES = "patch_size: 4, width: 32, depth: 2, heads: 2"
DINOV3, EVA, MIXED = "vit_small_plus_patch16_dinov3_qkvb", "eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224"
METHODS = ("mae", "ibot", "dino", "simclr", "simmim")
# what DINOv3 adds to iBOT, with features that differ from picture to picture from the beginning
ADDED = [
    f"method.encoder={{model: {DINOV3}, {SIZES}, init_values: 1.0, rope_rescale: 2.0}}",
    "method.gram={pairs: batch}",
    "method.local_norm=true",
    "method.koleo=0.1",
    "method.koleo_neighbours=2",
]


def encoder(model: str) -> str:
    return f"method.encoder={{model: {model}, {SIZES}}}"


@pytest.mark.parametrize("model", [DINOV3, EVA, MIXED])
@pytest.mark.parametrize("name", METHODS)
def test_two_steps_reach_every_parameter_and_timm_loads_the_export(name: str, model: str, tmp_path: Path) -> None:
    method, batch = build(name, encoder(model)).train(), batch_of(name, encoder(model))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        output = method(batch, START)
        output.loss.backward()
        trained = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
        assert not [key for key, gradient in trained.items() if gradient is None or not gradient.isfinite().all()]
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(START)
    method.eval()
    kept, heads = split_heads(method)
    export_encoder(tmp_path / "export", kept, IMAGENET._replace(pool=method.pooling()), "", heads)
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = batch.views[0].pixels[0]
    with torch.no_grad():
        tokens = kept(images)
        pooled = kept.own(tokens) if method.pooling() == "own" else tokens.pool(method.pooling())
        torch.testing.assert_close(alone.forward_features(images), tokens.raw, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone(images), pooled, rtol=1e-5, atol=1e-5)
    assert not any("mask_token" in key for key in kept.vit.state_dict())


@pytest.mark.parametrize(("name", "options"), [("mae", [encoder(MIXED)]), ("ibot", ADDED)])
def test_runs_on_a_gpu_without_waiting_for_it(name: str, options: list[str]) -> None:
    output = on_a_gpu(build(name, *options), batch_of(name, *options))
    assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


# ---------------------------------------------------------------- processes


def one_step(name: str) -> dict[str, Tensor]:
    """Loss, gradients and state after a step on the global batch, of which each process has a part."""
    options = ADDED if name == "ibot" else [encoder(DINOV3)]
    method, batch = build(name, *options).double(), batch_of(name, *options)
    output = method(share_of(batch), START)
    output.loss.backward()
    found = {"loss": mean_over_processes(output.loss.double())}
    for key, parameter in method.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {key}"] = mean_over_processes(parameter.grad)
            parameter.data.sub_(0.1 * found[f"gradient of {key}"])
    method.after_step(START)
    return found | method.state_dict()


def all_steps(_rank: int, names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    return {name: one_step(name) for name in names}


def test_two_processes_are_one() -> None:
    names = ("mae", "ibot")
    for found in on_processes(partial(all_steps, names=names)):
        for name in names:
            one = one_step(name)
            assert found[name].keys() == one.keys()
            for key, tensor in one.items():
                torch.testing.assert_close(
                    found[name][key], tensor, rtol=1e-5, atol=1e-7, msg=lambda t, k=key: f"{k}: {t}"
                )


def arguments(output: Path, *more: str) -> list[str]:
    return [str(recipe_file("mae")), f"run.output={output}", *SMALL, *QUIET, *UNSHOWN, encoder(DINOV3), *more]


def test_resumes_exactly_and_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    whole, killed, two = tmp_path / "whole", tmp_path / "killed", tmp_path / "two"
    assert launch("pretrain", arguments(whole)) == [0]
    assert launch("pretrain", arguments(killed), kill={"step": 5}) == [-9]
    assert launch("pretrain", arguments(killed)) == [0]
    assert checkpoint_bytes(killed, LAST) == checkpoint_bytes(whole, LAST)
    assert launch("pretrain", arguments(two), world=2) == [0, 0]
    losses: Any = ([line["loss"] for line in metrics(output)] for output in (two, whole))
    first, second = losses
    assert first == pytest.approx(second, rel=1e-5)
    assert_close_weights(whole, two, LAST)
