"""What fine-tuning starts from, without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import launch

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, Preprocessing, export_encoder
from unlabeled.backbone.weights import weights_digest
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.recipe import RecipeError, dump, parse
from unlabeled.recipe.shipped import find
from unlabeled.stages.finetune import STAGE, FinetuneRecipe, complete
from unlabeled.transfer.losses import effective_weights
from unlabeled.transfer.start import load_start


def started(address: str, channels: int = 3, size: int = 16, adapt: Any = (), seed: int = 0) -> Encoder:
    return load_start(address, (size, size), channels, adapt, seed).encoder


@pytest.fixture
def export(tmp_path: Path) -> str:
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", {})
    return str(tmp_path / "export")


def test_channels_are_fitted_where_asked(export: str) -> None:
    with pytest.raises(UserError, match=r"sees 3 channels, the pictures have 1 .* adapt=\[channels\]"):
        started(export, channels=1)
    adapted = started(export, channels=1, adapt=("channels",))
    whole = started(export)
    torch.testing.assert_close(
        adapted.vit.patch_embed.proj.weight, whole.vit.patch_embed.proj.weight.sum(1, keepdim=True)
    )


def test_random_weights_need_no_fitting(export: str) -> None:
    encoder = started(f"scratch:{export}", size=24)
    assert encoder.image_size == (24, 24)


def test_random_weights_follow_from_the_seed(export: str) -> None:
    def drawn(seed: int) -> str:
        before = torch.random.get_rng_state()
        encoder = started(f"scratch:{export}", seed=seed)
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
    for name in ("classify", "sweep"):
        content = {"name": "it", "encoder": export, "task": {"name": name, "view": {"size": 16}, **task}}
        recipe = FinetuneRecipe.model_validate({"data": {"name": "shapes", "train_size": 60, "size": 16}, **content})
        training = STAGE.job(recipe, Opened(recipe.data))
        dataset = training.dataset
        labels = dataset.source.labels
        assert dataset.mixing == recipe.task.mixing and dataset.order is not None
        assert dataset.order[1:] == ("sqrt", 2, 3) and np.array_equal(dataset.order.labels, labels)
        method: Any = training.build()
        counts = torch.tensor([int((labels == c).sum()) for c in range(len(dataset.source.classes))])
        assert counts[0] > counts[-1]
        torch.testing.assert_close(method.objective.weight, effective_weights(counts, 0.9))


ODD = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.7, "bilinear", pool="mean")
BARE = "name: it\ndata: {name: shapes, train_size: 60, size: 16}\n"


@pytest.fixture
def odd(tmp_path: Path) -> str:
    tiny = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2)
    export_encoder(tmp_path / "odd", tiny.build((16, 16)), ODD, "# card\n", {})
    return str(tmp_path / "odd")


@pytest.mark.parametrize("scratch", ["", "scratch:"])
def test_what_a_recipe_does_not_say_is_the_encoders(odd: str, scratch: str) -> None:
    found, taken = complete(parse(FinetuneRecipe, f"{BARE}encoder: {scratch}{odd}"))
    task, data = found.task, found.data
    assert (data.mean, data.std) == (ODD.mean, ODD.std)
    assert (task.view.shape, task.crop_pct, task.evaluated_with, task.pool) == ((16, 16), 0.7, "bilinear", "mean")
    assert {'task.pool="mean"', "task.view.size=[16, 16]", "data.mean=[0.5, 0.4, 0.3]"} <= set(taken)
    STAGE.job(found, Opened(found.data))
    # a recipe that was written out says everything, and stays as it is
    assert complete(parse(FinetuneRecipe, dump(found))) == (found, [])


def test_what_a_recipe_says_stays(odd: str) -> None:
    said = "task: {pool: cls, crop_pct: 1.0, view: {size: 24, interpolation: bicubic}}\nadapt: [size]\n"
    found, _ = complete(parse(FinetuneRecipe, f"{BARE}{said}encoder: {odd}"))
    task = found.task
    assert (task.view.shape, task.crop_pct, task.evaluated_with, task.pool) == ((24, 24), 1.0, "bicubic", "cls")
    other = parse(FinetuneRecipe, f"{BARE}encoder: {odd}", ["data.mean=[0.1, 0.1, 0.1]"])
    with pytest.raises(UserError, match=r"pretrained with mean \(0.5, 0.4, 0.3\)"):
        STAGE.job(complete(other)[0], Opened(other.data))


@pytest.mark.parametrize("strategy", ["attentive", "retrain"])
def test_heads_that_pool_by_themselves_are_left(odd: str, strategy: str) -> None:
    found, taken = complete(parse(FinetuneRecipe, f"{BARE}encoder: {odd}\ntask: {{strategy: {{name: {strategy}}}}}"))
    assert not [change for change in taken if "pool" in change] and found.task.way == strategy


def test_an_encoder_of_other_channels_decides_how_pictures_are_decoded(tmp_path: Path) -> None:
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "channels": 5}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(tmp_path / "five", encoder, Preprocessing((0.2,) * 5, (0.1,) * 5), "# card\n", {})
    text = f"name: it\nencoder: {tmp_path}/five\ndata: {{name: files, path: {tmp_path}}}\n"
    assert complete(parse(FinetuneRecipe, text))[0].data.channels == 5
    with pytest.raises(UserError, match="five was trained"):  # drawn shapes have three channels, whoever asks
        complete(parse(FinetuneRecipe, f"{BARE}encoder: {tmp_path}/five"))


@pytest.mark.parametrize(
    ("folders", "more", "expected"),
    [
        (["bee", "wasp"], [], ("", None)),
        (["bee", "wasp"], ["data.train=bee"], ("bee", None)),
        (["train", "val"], [], ("train", None)),
        (["Train", "test"], [], ("train", None)),
        (["bee"], [], ("train", None)),
    ],
)
def test_a_share_to_hold_out_needs_no_word_more(
    folders: list[str], more: list[str], expected: tuple[str, str | None], tmp_path: Path
) -> None:
    for folder in (*folders, ".hidden"):
        (tmp_path / folder).mkdir()
    arguments = [f"data.path={tmp_path}", "encoder=some/export", "data.split=0.2", *more]
    data: Any = STAGE.load(find("photos_few_labels"), arguments)[0].data
    assert (data.train, data.val, data.split) == (*expected, 0.2)


def test_a_share_beside_pictures_that_the_command_line_names_is_refused(tmp_path: Path) -> None:
    arguments = [f"data.path={tmp_path}", "encoder=some/export", "data.split=0.2", "data.val=val"]
    with pytest.raises(RecipeError, match=r"Leave split out, or these: data.val=null"):
        STAGE.load(find("photos_few_labels"), arguments)


def test_finetuning_goes_by_the_export_and_says_so(
    odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{BARE}encoder: {odd}\ntrain: {{batch_size: 8}}\nrun: {{device: cpu}}\n", encoding="utf-8")
    assert launch("finetune", [str(recipe), "--dry-run", f"run.output={tmp_path / 'run'}"]) == [0]
    assert "from the encoder: task.crop_pct=0.7, task.view.size=[16, 16]" in capsys.readouterr().err


def test_official_weights_are_named_by_method(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no official weights of 'wmse'. Expected one of barlowtwins, crossmae, dino, dinov2"
    ):
        started("wmse:weights.pth")
