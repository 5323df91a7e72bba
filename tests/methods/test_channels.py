"""Every method on pictures of other channels than RGB, and on crops that are no squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from support import ROOT

from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import plan
from unlabeled.pretrain.method import METHODS, Progress
from unlabeled.recipe import load
from unlabeled.recipe.faults import RecipeError
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.job import Job
from unlabeled.train.pictures import PictureWriter
from unlabeled.train.state import split_heads

CPU = torch.device("cpu")
COUNT = 8
every_method = pytest.mark.parametrize("name", METHODS.names())


def recipe_of(name: str, channels: int, folder: Path) -> Any:
    """The demo's, on arrays; crops are twice as high as they are wide."""
    file = str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml")
    array = np.random.default_rng(0).integers(0, 256, (COUNT, 24, 40, channels), dtype=np.uint8)
    np.save(folder / "x.npy", array)
    normal = f"mean: {[0.5] * channels}, std: {[0.25] * channels}"
    changes = [f"data={{name: arrays, train: {folder}/x.npy, {normal}}}", f"method.encoder.channels={channels}"]
    for field, view in load(PretrainRecipe, file).method:
        if isinstance(view, View):
            jitter = None if view.jitter is None else [*view.jitter[:2], 0, 0]
            values = {"size": [view.shape[0], view.shape[1] // 2], "jitter": jitter or "null", "grayscale": 0}
            changes += [f"method.{field}.{key}={value}" for key, value in values.items()]
    changes += ["train.batch_size=8", "train.epochs=2", "optim.warmup_epochs=0.5", "evaluate=null", "run.device=cpu"]
    return load(PretrainRecipe, file, changes)


@every_method
@pytest.mark.parametrize("channels", [1, 4])
def test_it_learns_draws_and_exports(name: str, channels: int, tmp_path: Path) -> None:
    recipe = recipe_of(name, channels, tmp_path)
    config, data = recipe.method, recipe.data
    patch = config.encoder.patch_size
    opened = Opened(data)
    dataset = ViewDataset(opened.train, config.views, patch, recipe.seed, config.mixing)
    assert dict(plan(Job(recipe, config.build, opened, dataset), [], 1, "cpu"))["steps"]
    positions = next(iter(EpochSampler(COUNT, 8, 2, seed=0)))
    batch = to_device(collate([dataset[p] for p in positions]), CPU, Normalize(data.mean, data.std, CPU))
    height, width = config.views[0].shape
    assert batch.views[0].pixels.shape[2:] == (channels, height, width) and height == 2 * width

    torch.manual_seed(0)
    method = config.build()
    loss = method(batch, Progress(0, 2, 0.0, 2.0)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)
    PictureWriter(tmp_path / "pictures", data.mean, data.std)(0, method.eval(), batch)
    assert next((tmp_path / "pictures").iterdir()).stat().st_size

    encoder, heads = split_heads(method)
    export_encoder(tmp_path / "export", encoder, Preprocessing.of(data, 1.0), "# card\n", heads)
    images, encoder = batch.views[0].pixels[0].double(), encoder.double()  # float32 sums depend on the CPU
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True, num_classes=0).double().eval()
    with torch.no_grad():
        tokens = encoder(images)
        expected = torch.cat([tokens.prefix, tokens.patches], dim=1)
        found = alone.forward_features(images)
        torch.testing.assert_close(found.flatten(2).mT if found.ndim == 4 else found, expected, rtol=0, atol=1e-12)
        again = load_encoder(tmp_path / "export").double().eval()(images)
    assert alone.pretrained_cfg["input_size"] == (channels, height, width)
    torch.testing.assert_close(again.patches, tokens.patches, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match=f"the encoder sees {channels} channels, pictures have 3"):
        load_encoder(tmp_path / "export", channels=3)


def test_channels_of_method_and_pictures_must_agree() -> None:
    file = ROOT / "recipes" / "demo" / "mae_shapes.yaml"
    with pytest.raises(RecipeError) as caught:
        load(PretrainRecipe, file, ["method.encoder.channels=4", "train.batch_size=0"])
    said = str(caught.value)
    assert "method: encoder.channels is 4, the pictures have 3" in said and "method.encoder.channels=3" in said
    assert "train.batch_size: expected an integer of at least 1" in said


def test_a_view_to_fine_tune_on_must_suit_the_channels() -> None:
    file = ROOT / "recipes" / "finetune" / "full_cifar10.yaml"
    others = ["data.mean=[0.5]", "data.std=[0.5]", "task.view.jitter=[0.4, 0.4, 0.2, 0.1]"]
    with pytest.raises(RecipeError, match=r"task: jitter of saturation 0.2 and hue 0.1 is for 3 channels, found 1"):
        load(FinetuneRecipe, file, others)
    assert load(FinetuneRecipe, file, [*others[:2], "task.view.jitter=[0.4, 0.4, 0, 0]"]).data.channels == 1


def test_mean_and_std_must_agree() -> None:
    file = ROOT / "recipes" / "pretrain" / "mae_vits16_1gpu.yaml"
    with pytest.raises(RecipeError, match="mean has 4 values and std 3; expected one of each per channel"):
        load(PretrainRecipe, file, ["data.mean=[0, 0, 0, 0]"])
    seventeen = str([0.5] * 17)
    with pytest.raises(RecipeError, match=r"data\.mean: expected a list of 1 to 16 numbers"):
        load(PretrainRecipe, file, [f"data.mean={seventeen}"])
    with pytest.raises(RecipeError, match=r"data.value_range: expected \[low, high\], found \[9.0, 1.0\]"):
        load(PretrainRecipe, file, ["data.value_range=[9, 1]"])
    demo = ROOT / "recipes" / "demo" / "mae_shapes.yaml"
    with pytest.raises(RecipeError, match="shapes are drawn in 3 channels, found a mean of 1 values"):
        load(PretrainRecipe, demo, ["data.mean=[0.5]", "data.std=[0.5]", "method.encoder.channels=1"])


@pytest.mark.parametrize("name", ["mocov3", "simclr", "dino", "ibot"])
def test_hues_of_other_pictures_than_rgb_are_refused(name: str) -> None:
    with pytest.raises(
        ValidationError, match=r"for 3 channels, found 4. Set jitter: \[0.\d, 0.\d, 0, 0\] in every view"
    ):
        METHODS.kind(name)(encoder={**METHODS.kind(name)().encoder.model_dump(), "channels": 4})
    with pytest.raises(ValueError, match=r"grayscale 0.2 is for 3 channels, found 1. Set grayscale: 0 in every view"):
        View(size=16, jitter=(0.4, 0.4, 0, 0), grayscale=0.2).check(16, channels=1)
