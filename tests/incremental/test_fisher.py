"""Importances of parameters against gradients of one image at a time."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from incremental.tiny import network
from torch import Tensor, nn

from unlabeled.incremental import fisher
from unlabeled.incremental.fisher import CHUNK, chunk_importances, importances, merged


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The mean of squares in evaluation mode, image by image."""
    model.eval()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for image, label in zip(x, y, strict=True):
        loss = -model(image[None]).log_softmax(1)[0, label]
        for name, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[name] += g**2 / len(x)
    return total


def images(n: int = 11, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, width, dtype=torch.float64), torch.arange(n) % classes


def test_each_image_for_itself_in_evaluation_mode() -> None:
    model, (x, y) = network().train(), images()
    model[0].bias.requires_grad_(False)  # type: ignore[index]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = importances([chunk_importances(model, x, y)], len(x))
    assert all(part.training for part in model.modules())
    assert all(t.equal(before[name]) for name, t in model.state_dict().items()), "statistics do not move"
    expected = one_at_a_time(model, x, y)
    assert found.keys() == expected.keys() and "0.bias" not in found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert found[name].dtype == torch.float64


def test_the_square_of_a_batch_is_something_else() -> None:
    model, (x, y) = network().eval(), images()
    whole = torch.autograd.grad(F.cross_entropy(model(x), y), model[0].weight)[0].square()  # type: ignore[index]
    found = importances([chunk_importances(model, x, y)], len(x))["0.weight"]
    assert (found > 1.5 * whole).double().mean() > 0.8


def test_chunks_add_to_the_same_bits_on_any_number_of_processes() -> None:
    model, (x, y) = network(), images(20)
    chunks = [(x[i : i + 6], y[i : i + 6]) for i in range(0, 20, 6)]
    one = importances((chunk_importances(model, *chunk) for chunk in chunks), 20)
    # two processes take every other chunk; sums are added in the order of their numbers
    made = {i: chunk_importances(model, *chunks[i]) for rank in (0, 1) for i in range(rank, 4, 2)}
    two = importances([made[i] for i in range(4)], 20)
    assert all(one[name].equal(two[name]) for name in one)
    for name, value in one_at_a_time(model, x, y).items():
        torch.testing.assert_close(one[name], value)


def test_few_images_at_once_where_there_are_many_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network(), images()
    whole = chunk_importances(model, x, y)
    monkeypatch.setattr(fisher, "GRADIENTS", 3 * sum(p.numel() for p in model.parameters()))
    for name, value in chunk_importances(model, x, y).items():
        torch.testing.assert_close(value, whole[name])
    assert CHUNK == 256


def test_a_transformer_in_float32() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=3
    )
    nn.init.normal_(model.head.weight, std=0.3)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    found = importances([chunk_importances(model, x, y)], 4)
    for name, value in one_at_a_time(model, x, y).items():
        torch.testing.assert_close(found[name].float(), value, rtol=1e-4, atol=1e-9)


def test_tasks_weigh_by_their_classes_and_new_rows_stay() -> None:
    before, now = torch.rand(2, 3), torch.rand(5, 3)
    found = merged(before, now, 0.4)
    torch.testing.assert_close(found[:2], 0.4 * before + 0.6 * now[:2])
    assert found[2:].equal(now[2:])
    single = torch.tensor(2.0), torch.tensor(1.0)
    assert merged(*single, 0.25) == 1.25
