"""What is in a set and compared by nobody fails."""

from __future__ import annotations

import re

import pytest
from parity.golden import METHODS, READ, files_of, golden_folders, names_in
from parity.whole import modules_of, ran_whole

WITH_GRADIENTS = (
    "mae/model.safetensors",
    "simmim/vit.safetensors",
    "simmim/swin.safetensors",
    "mocov3/model.safetensors",
    "mocov3/contrastive.safetensors",
    "distill/loss.safetensors",
    "dino/head.safetensors",
    "dino/loss.safetensors",
    "dino/multicrop.safetensors",
    "ibot/head.safetensors",
    "ibot/loss.safetensors",
    "ibot/model.safetensors",
    "dinov2/koleo.safetensors",
    "ijepa/model.safetensors",
    "dinov2/losses.safetensors",
    "dinov3/losses.safetensors",
    "dinov3/model.safetensors",
    "simsiam/model.safetensors",
    "byol/heads.safetensors",
    "barlowtwins/loss.safetensors",
    "vicreg/loss.safetensors",
    "crossmae/model_weighted.safetensors",
    "lejepa/loss.safetensors",
    "simdino/loss.safetensors",
    "swav/model.safetensors",
    "msn/loss.safetensors",
    "lwf/pycil.safetensors",
    "lwf/facil.safetensors",
    "ewc/pycil_sample.safetensors",
    "ewc/pycil_batch.safetensors",
    "podnet/loss_cifar100.safetensors",
    "podnet/loss_imagenet.safetensors",
    "podnet/pycil.safetensors",
    "der/expand_fresh.safetensors",
    "der/expand_reuse.safetensors",
    "icarl/loss.safetensors",
    "derpp/step.safetensors",
    "semi/fixmatch.safetensors",
    "semi/freematch.safetensors",
    "simgcd/step.safetensors",
    "softteacher/background_weights.safetensors",
    "vitdet/pyramid.safetensors",
)
# files of sets that nothing here computes, with the reason
NOT_BUILT = {"semi/softmatch.safetensors": "weights in the place of a threshold: no better than FreeMatch's"}


@pytest.mark.parametrize("method", METHODS)
def test_every_name_of_the_set_is_compared(request: pytest.FixtureRequest, method: str) -> None:
    """Every file, and every name in it, was read by the method's tests, which are run here unless they just were."""
    folder = golden_folders(request.config).get(method)
    if folder is None:
        pytest.skip(f"the given set has no folder {method}")
    if not ran_whole(request.config, method):
        given = request.config.getoption("--golden")
        pytest.main([*map(str, modules_of(method)), "-p", "no:cacheprovider", *(["--golden", given] if given else [])])
    built = [file for file in files_of(folder) if f"{method}/{file.name}" not in NOT_BUILT]
    left = {file.name: missed for file in built if (missed := sorted(names_in(file) - READ[file]))}
    assert not left, f"compared by nobody: {left}"


@pytest.mark.parametrize("file", WITH_GRADIENTS)
def test_there_are_gradients_to_compare(request: pytest.FixtureRequest, file: str) -> None:
    """A set may store some of them, not none."""
    method, _, name = file.partition("/")
    folder = golden_folders(request.config).get(method)
    if folder is None:
        pytest.skip(f"the given set has no folder {method}")
    found = [key for key in names_in(folder / name) if re.search(r"(^|/)(grad|dloss_d|d\w+_d)", key)]
    assert found, f"{file} holds no gradient"
