"""Methods with Swin and Hiera, whose stages merge tokens: hidden units, processes, resuming, fine-tuning."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from every_method import LAST, QUIET, SMALL, START, batch_of, build, on_a_gpu, recipe_file, share_of
from support import TINY_FINETUNE, UNSHOWN, checkpoint_bytes, launch, on_processes
from torch import Tensor

from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.nn.collectives import mean_over_processes
from unlabeled.train.state import split_heads

SWIN = "{model: swin_tiny_patch4_window7_224, patch_size: 8, width: 16, depth: [2, 1], heads: [1, 2], window: 3}"
SECOND = "{model: swinv2_tiny_window8_256, patch_size: 8, width: 16, depth: [2, 1], heads: [1, 2], window: 3}"
HIERA = "{model: hiera_tiny_224, width: 16, depth: [1, 1, 1, 1], heads: 1}"
LARGE = ["data.size=64", "method.view.size=64"]  # for mask units of 32 px
HIDE = "method.view.mask={name: random, ratio: 0.5, unit: %d}"

# what is told to the demo recipe of a method
CASES: dict[str, tuple[str, list[str]]] = {
    "simmim on swin": ("simmim", [f"method.encoder={SWIN}"]),
    "simmim on swin, fine": ("simmim", [f"method.encoder={SWIN}", HIDE % 4]),
    "simmim on swinv2": ("simmim", [f"method.encoder={SECOND}"]),
    "mae on hiera": ("mae", [f"method.encoder={HIERA}", *LARGE, HIDE % 32]),
    "mae on hiera, cross_light": (
        "mae",
        [f"method.encoder={HIERA}", *LARGE, HIDE % 32, "method.decoder.name=cross_light"],
    ),
    "simclr on swin": ("simclr", [f"method.encoder={SWIN}"]),
    "simclr on hiera": ("simclr", [f"method.encoder={HIERA}", *LARGE]),
}
WHOLE = ("simmim on swin", "mae on hiera")


@pytest.mark.parametrize("case", CASES)
def test_two_steps_reach_every_parameter_and_timm_loads_the_export(case: str, tmp_path: Path) -> None:
    name, more = CASES[case]
    method, batch = build(name, *more).train(), batch_of(name, *more)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        method(batch, START).loss.backward()
        trained = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
        assert not [key for key, gradient in trained.items() if gradient is None or not gradient.isfinite().all()]
        optimizer.step()
        optimizer.zero_grad()
    method.eval()
    encoder, heads = split_heads(method)
    export_encoder(tmp_path / "export", encoder, IMAGENET, "", heads)
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = batch.views[0].pixels[0]
    with torch.no_grad():
        torch.testing.assert_close(alone(images), encoder.feature(images), rtol=0, atol=1e-5)
    assert not any("mask_token" in key for key in encoder.vit.state_dict())


@pytest.mark.parametrize("case", ["simmim on swin, fine", "simmim on swinv2", "mae on hiera"])
def test_runs_on_a_gpu_without_waiting_for_it(case: str) -> None:
    name, more = CASES[case]
    output = on_a_gpu(build(name, *more), batch_of(name, *more))
    assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


# ---------------------------------------------------------------- processes


def one_step(case: str) -> dict[str, Tensor]:
    """Loss, gradients and state after a step on the global batch, of which each process has a part."""
    name, more = CASES[case]
    method, batch = build(name, *more).double(), batch_of(name, *more)
    output = method(share_of(batch), START)
    output.loss.backward()
    found = {"loss": mean_over_processes(output.loss.double())}
    for key, parameter in method.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {key}"] = mean_over_processes(parameter.grad)
    return found


def all_steps(_rank: int, cases: list[str]) -> dict[str, dict[str, Tensor]]:
    return {case: one_step(case) for case in cases}


def test_two_processes_are_one() -> None:
    cases = ["simmim on swin, fine", "mae on hiera"]
    one = all_steps(0, cases)
    for found in on_processes(partial(all_steps, cases=cases)):
        for case in cases:
            for key, tensor in one[case].items():
                scale = tensor.abs().max().item()  # losses are sums of float32
                torch.testing.assert_close(
                    found[case][key], tensor, rtol=1e-5, atol=1e-6 * scale, msg=lambda t, k=key: f"{k}: {t}"
                )


# ---------------------------------------------------------------- whole runs


def arguments(case: str, output: Path) -> list[str]:
    name, more = CASES[case]
    return [str(recipe_file(name)), f"run.output={output}", *SMALL, *QUIET, *more]


@pytest.mark.parametrize("case", WHOLE)
def test_resumes_exactly_and_its_export_is_fine_tuned(case: str, tmp_path: Path) -> None:
    whole, killed, tuned = tmp_path / "whole", tmp_path / "killed", tmp_path / "tuned"
    assert launch("pretrain", arguments(case, whole)) == [0]
    assert launch("pretrain", [*arguments(case, killed), *UNSHOWN], kill={"step": 5}) == [-9]
    assert launch("pretrain", [*arguments(case, killed), *UNSHOWN]) == [0]
    assert checkpoint_bytes(killed, LAST) == checkpoint_bytes(whole, LAST)

    # at another size, with layer decay: Swin's windows and Hiera's positions are fitted
    side = 64 if "swin" in case else 96
    (tmp_path / "tiny.yaml").write_text(TINY_FINETUNE.replace("size: 16", f"size: {side}"), encoding="utf-8")
    how = ["task.strategy={name: differential, layer_decay: 0.5}", "task.pool=own", "adapt=[size]", "train.epochs=1"]
    said = [str(tmp_path / "tiny.yaml"), f"encoder={whole / 'export'}", f"run.output={tuned}", *how]
    assert launch("finetune", said) == [0]
    alone = timm.create_model(f"local-dir:{tuned / 'export'}", pretrained=True)
    assert alone(torch.zeros(2, 3, side, side)).shape == (2, 10)
