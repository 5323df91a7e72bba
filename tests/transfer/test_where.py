"""Where a classifier looks: equal to maps from hooks and plain loops, for every kind of network and task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import classifying
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.view.views import View
from unlabeled.nn.recompute import recompute_
from unlabeled.transfer.tasks.classify import Classifier
from unlabeled.transfer.tasks.sweep import Config, LinearSweep
from unlabeled.transfer.where import gradient_weighted, maps, overlay, positions

CLASSES, SIZE = 4, (32, 48)
VIT, ROPE, SWIN = "vit_tiny_patch16_224", "vit_small_plus_patch16_dinov3_qkvb", "swin_tiny_patch4_window7_224"
SHAPES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_efficientnet": {},
    SWIN: {"patch_size": 4, "width": 8, "depth": (1, 1), "heads": (1, 2)},
}

# network, settings of the task, and the timm module whose output the maps weight
WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "class token": (VIT, {"pool": "cls"}, "blocks.1.norm1"),
    "mean": (VIT, {"pool": "mean"}, "norm"),
    "probe": (VIT, {"strategy": "linear", "pool": "cls"}, "blocks.1.norm1"),
    "attentive": (VIT, {"strategy": "attentive"}, "norm"),
    "lora": (VIT, {"strategy": "lora", "pool": "cls", "ema": 0.5}, "blocks.1.norm1"),
    "rope": (ROPE, {"pool": "cls"}, "blocks.1.norm1"),
    "beit": ("beit_base_patch16_224", {"pool": "mean"}, "norm"),
    "swin": (SWIN, {"pool": "mean"}, "norm"),
    "resnet": ("test_resnet", {"pool": "mean", "view": View(size=(96, 112))}, "layer4"),
    "small images": ("test_resnet", {"pool": "mean"}, "layer2"),
    "efficientnet": ("test_efficientnet", {"pool": "mean", "view": View(size=(96, 112))}, "bn2"),
}


def encoder(model: str, size: tuple[int, int] = SIZE) -> Encoder:
    torch.manual_seed(0)
    shape = SHAPES.get(model, {"patch_size": 8, "width": 16, "depth": 2, "heads": 2})
    return EncoderConfig(model=model, **shape).build(size)


def classifier(model: str, settings: dict[str, Any]) -> Classifier:
    config = classifying(**{"view": View(size=SIZE), **settings})
    return stirred(Classifier(encoder(model, config.view.shape), config, [9] * CLASSES))


def stirred(task: Any) -> Any:
    """In float64, with weights that make scores depend on everything."""
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.3)
    return task.double().eval()


def pictures(n: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def naive(task: Classifier, module: str, image: Tensor, chosen: int, grid: tuple[int, int]) -> Tensor:
    """Equations 1 and 2 of the paper, by loops over positions and channels, from one backward pass of `predict`."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = task.network.get_submodule(module).register_forward_hook(keep)
    task.predict(image[None].requires_grad_())[0, chosen].backward()
    handle.remove()
    activations, gradients = kept[0].detach()[0], kept[0].grad[0]  # type: ignore[index]
    if activations.ndim == 3 and activations.shape[1:] == grid:
        activations, gradients = activations.permute(1, 2, 0), gradients.permute(1, 2, 0)
    rows, columns = grid
    channels = activations.shape[-1]
    patches, slopes = (t.reshape(-1, channels)[-rows * columns :].tolist() for t in (activations, gradients))
    found = torch.zeros(grid, dtype=torch.float64)
    weights = [sum(at[k] for at in slopes) / len(slopes) for k in range(channels)]
    for i in range(rows):
        for j in range(columns):
            found[i, j] = max(0.0, sum(weights[k] * patches[i * columns + j][k] for k in range(channels)))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_maps_are_those_of_plain_loops(way: str) -> None:
    model, settings, module = WAYS[way]
    task, classes = classifier(model, settings), [torch.tensor([0, 3, 1]), torch.tensor([2, 0, 1])]
    images = pictures(size=task.config.view.shape)
    modes = [part.training for part in task.modules()]
    found = maps(task, images, classes)
    for each, chosen in zip(found, classes, strict=True):
        for heat, image, number in zip(each, images, chosen.tolist(), strict=True):
            torch.testing.assert_close(heat, naive(task, module, image, number, tuple(heat.shape)))  # type: ignore[arg-type]
    assert found[0].any() and not torch.equal(found[0], found[1])
    assert torch.equal(found[0][2], found[1][2])
    assert [part.training for part in task.modules()] == modes
    assert all(parameter.grad is None for parameter in task.network.parameters() if not parameter.requires_grad)


def test_a_cnn_by_hand() -> None:
    """One layer: the weights of the classifier over the number of positions."""
    activations = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]]])
    weights = torch.tensor([0.6, -0.3])
    gradients = weights.expand(1, 3, 2) / 3
    expected = [(0.6 * 1 + 0.3 * 2) / 3, (0.6 * 3 - 0.3 * 4) / 3, 0.3 / 3]
    torch.testing.assert_close(gradient_weighted(activations, gradients), torch.tensor([expected]))
    assert gradient_weighted(activations, -gradients).tolist() == [[0, 0, 0]]


SWEEPS = [(VIT, "cls", 2), (VIT, "cls_mean", 2), (VIT, "mean_max", 1), ("test_resnet", "own", 1)]


@pytest.mark.parametrize(("model", "pool", "blocks"), SWEEPS)
def test_sweeps_trace_what_they_predict(model: str, pool: Any, blocks: int) -> None:
    config = Config(view=View(size=SIZE), pools=(pool,), blocks=(blocks,), rates=(0.1, 1.0, 2.0))
    task, images = stirred(LinearSweep(encoder(model), config, [9] * CLASSES)), pictures(9)
    task.chosen = 1
    scores = task.predict(images)
    torch.testing.assert_close(task.traced(images).scores, scores)
    best, worst = maps(task, images, [scores.argmax(1), scores.argmin(1)])
    assert best.shape == (9, 4, 6) and (best + worst).any() and not torch.equal(best, worst)
    torch.testing.assert_close(maps(task, images[4:5], [scores.argmax(1)[4:5]])[0], best[4:5])


def test_blocks_that_are_computed_twice_give_the_same() -> None:
    task, images, classes = classifier(VIT, {"pool": "cls"}), pictures(), [torch.tensor([0, 3, 1])]
    expected = maps(task, images, classes)
    recompute_(task, "blocks")
    assert torch.equal(maps(task, images, classes)[0], expected[0])


def test_a_network_without_positions_says_so() -> None:
    task = classifier("test_resnet", {"pool": "mean"})
    with torch.no_grad():
        task.head.weight.zero_()
    with pytest.raises(ValueError, match="depend on no position"):
        maps(task, pictures(), [torch.tensor([0, 3, 1])])
    assert positions(torch.zeros(2, 16), (1, 1)) is None


def test_the_brightest_part_of_an_overlay_is_that_of_the_map() -> None:
    image, heat = torch.full((1, 12, 24), 200, dtype=torch.uint8), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    shown = overlay(image, heat)
    assert shown.shape == (3, 12, 24) and shown.dtype == torch.uint8
    assert (shown[:, 0, 0] == shown[0, 0, 0]).all() and shown[0, 0, 0] < 200
    red = shown[0].float()
    assert red[-1, -1] == red.max() > red[0, 0]
    assert torch.equal(overlay(image, torch.zeros(2, 2))[:, 5, 5], shown[:, 0, 0])
