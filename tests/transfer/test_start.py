"""What fine-tuning starts from, without starting it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unlabeled.data.views import View
from unlabeled.errors import UserError
from unlabeled.export import IMAGENET, export_encoder, weights_digest
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.schema import FinetuneRecipe
from unlabeled.training import finetuning
from unlabeled.transfer.config import ClassifyConfig
from unlabeled.transfer.losses import effective_weights
from unlabeled.transfer.start import load_start


def recipe(encoder: str, channels: int = 3, size: int = 16, adapt: tuple[str, ...] = (), seed: int = 0) -> Any:
    task, data = ClassifyConfig(view=View(size=size)), SimpleNamespace(channels=channels)
    return SimpleNamespace(encoder=encoder, task=task, data=data, adapt=adapt, seed=seed)


@pytest.fixture
def export(tmp_path: Path) -> str:
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", {})
    return str(tmp_path / "export")


def test_channels_are_fitted_where_asked(export: str) -> None:
    with pytest.raises(UserError, match=r"sees 3 channels, the pictures have 1 .* adapt=\[channels\]"):
        load_start(recipe(export, channels=1))
    adapted, _ = load_start(recipe(export, channels=1, adapt=("channels",)))
    whole, _ = load_start(recipe(export))
    torch.testing.assert_close(
        adapted.vit.patch_embed.proj.weight, whole.vit.patch_embed.proj.weight.sum(1, keepdim=True)
    )


def test_random_weights_need_no_fitting(export: str) -> None:
    encoder, _ = load_start(recipe(f"scratch:{export}", size=24))
    assert encoder.image_size == (24, 24)


def test_random_weights_follow_from_the_seed(export: str) -> None:
    def drawn(seed: int) -> str:
        before = torch.random.get_rng_state()
        encoder, _ = load_start(recipe(f"scratch:{export}", seed=seed))
        assert torch.equal(before, torch.random.get_rng_state())
        torch.rand(1)
        return weights_digest(encoder.state_dict())

    assert drawn(0) == drawn(0) != drawn(1)


def test_what_a_task_says_of_pictures_reaches_samples_and_loss(export: str) -> None:
    task = {
        "long_tail": 4,
        "balance": "sqrt",
        "balance_from": 2,
        "repeats": 3,
        "mixing": {"mixup": 0.8},
        "effective_number": 0.9,
    }
    for mode in ("full", "sweep"):
        content = {"name": "it", "encoder": export, "task": {"mode": mode, "view": {"size": 16}, **task}}
        recipe = FinetuneRecipe.model_validate({"data": {"name": "shapes", "train_size": 60, "size": 16}, **content})
        training = finetuning(recipe)
        dataset = training.dataset
        labels = dataset.source.labels
        assert dataset.mixing == recipe.task.mixing and dataset.order is not None
        assert dataset.order[1:] == ("sqrt", 2, 3) and np.array_equal(dataset.order.labels, labels)
        method: Any = training.build()
        counts = torch.tensor([int((labels == c).sum()) for c in range(len(dataset.source.classes))])
        assert counts[0] > counts[-1]
        torch.testing.assert_close(method.objective.weight, effective_weights(counts, 0.9))


def test_official_weights_are_named_by_method(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no official weights of 'swav'. Expected one of mae, simmim, mocov3, dino"):
        load_start(recipe("swav:weights.pth"))
