"""The task segment: the decoder, its loss, scores by loops over pixels, what learns, and what is exported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from masked import draw
from pydantic import ValidationError
from torch import Tensor, nn

import unlabeled
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masked.view import UNLABELLED
from unlabeled.data.view.placed import whole
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.report.card import Made
from unlabeled.train.optimizers import adamw
from unlabeled.train.watch import Watching
from unlabeled.transfer.segmentation.drawing import beside, colours, tinted
from unlabeled.transfer.segmentation.network import Decoder, pixel_loss
from unlabeled.transfer.segmentation.predicting import Judged, classified, counts_of
from unlabeled.transfer.segmentation.score import interval_of, scores_of
from unlabeled.transfer.segmentation.upsampling import enlarged
from unlabeled.transfer.tasks.segment import Config, Segmentation

SIDE, CLASSES = 32, 3
NAMES = ("0", "1", "2")
HALVES = IMAGENET._replace(mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


def vit(**more: Any) -> Encoder:
    torch.manual_seed(0)
    sizes: Any = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2, **more}
    return EncoderConfig(model="vit_tiny_patch16_224", **sizes).build((SIDE, SIDE))


def cnn() -> Encoder:
    torch.manual_seed(0)
    return EncoderConfig(model="test_resnet").build((64, 64))


def config(**more: Any) -> Config:
    return Config.model_validate({"view": {"size": SIDE}, "decoder": {"channels": 16, "width": 16}, **more})


def segmentation(encoder: Encoder | None = None, **more: Any) -> Segmentation:
    torch.manual_seed(1)
    return Segmentation(encoder or vit(), config(**more), CLASSES).train()


def pixels(number: int, side: int = SIDE) -> Tensor:
    return (torch.from_numpy(draw(number, side, side).pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


def mask_of(number: int, side: int = SIDE) -> Tensor:
    mask = torch.from_numpy(draw(number, side, side).mask).short()
    return torch.where(mask == 255, torch.tensor(UNLABELLED, dtype=torch.int16), mask)


def batch(numbers: Sequence[int], side: int = SIDE) -> Batch:
    index = torch.tensor(numbers)
    view = ViewBatch(torch.stack([pixels(number, side) for number in numbers]).unsqueeze(0), None)
    masks = torch.stack([mask_of(number, side) for number in numbers])
    return Batch([view], torch.zeros_like(index), index, pixel_labels=masks)


def at(step: int = 0) -> Progress:
    return Progress(step, 100, step / 10, 10.0)


# ---------------------------------------------------------------- network


@pytest.mark.parametrize(("old", "new"), [((3, 5), (6, 10)), ((4, 4), (15, 9)), ((7, 2), (7, 2)), ((5, 6), (3, 2))])
def test_maps_are_enlarged_as_torch_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *new, dtype=torch.float64)
    ours, theirs = enlarged(x, new), F.interpolate(x, new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((found * weight).sum(), x)[0] for found in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_decoder_is_the_semantic_branch_level_by_level() -> None:
    torch.manual_seed(0)
    decoder = Decoder(4, 6, [4, 8, 16, 32], 5).double()
    assert [len(level.convs) for level in decoder.levels] == [1, 1, 2, 3]  # type: ignore[arg-type]
    levels = [torch.randn(2, 4, 24 // 2**n, 16 // 2**n, dtype=torch.float64) for n in range(4)]
    total = torch.zeros(2, 6, 24, 16, dtype=torch.float64)
    for number, x in enumerate(levels):
        for conv in decoder.levels[number].convs:  # type: ignore[union-attr]
            norm = conv.norm
            x = F.conv2d(x, conv.weight, padding=1)
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
            if number:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total += x
    torch.testing.assert_close(decoder(levels), decoder.classifier(total))


@pytest.mark.parametrize("side", [32, 64])
def test_scores_have_the_size_of_the_images(side: int) -> None:
    model = segmentation(vit() if side == 32 else cnn())
    assert model.predict(torch.randn(2, 3, side, side)).shape == (2, CLASSES, side, side)
    odd = EncoderConfig(model="vit_tiny_patch16_224", patch_size=14, width=16, depth=1, heads=2).build((42, 42))
    assert segmentation(odd).predict(torch.randn(1, 3, 42, 42)).shape == (1, CLASSES, 42, 42)


def test_all_that_learns_has_a_gradient() -> None:
    for encoder, side in ((vit(), SIDE), (cnn(), 64)):
        model = segmentation(encoder)
        model(batch([1, 2], side), at()).loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# ---------------------------------------------------------------- loss


def test_the_loss_is_a_mean_over_images_of_means_over_labelled_pixels() -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    labels = torch.randint(-1, 4, (3, 5, 6)).short()
    labels[1] = UNLABELLED
    each = []
    for own, mask in zip(scores, labels, strict=True):
        losses = [
            -own[:, row, column].log_softmax(0)[int(mask[row, column])].item()
            for row in range(5)
            for column in range(6)
            if mask[row, column] >= 0
        ]
        each.append(sum(losses) / len(losses) if losses else 0.0)
    assert each[1] == 0 and pixel_loss(scores, labels).item() == pytest.approx(sum(each) / 3, rel=1e-12)


def test_ignored_pixels_do_not_count() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4)).short()
    labels[:, 0] = UNLABELLED
    loss = pixel_loss(scores, labels)
    loss.backward()
    assert scores.grad is not None
    assert (scores.grad[:, :, 0] == 0).all() and (scores.grad[:, :, 1:] != 0).all()
    other = scores.detach().clone()
    other[:, :, 0] += 100 * torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(pixel_loss(other, labels), loss)


def test_the_loss_is_the_mean_of_parts_of_a_batch() -> None:
    model, numbers = segmentation(), [3, 4, 5, 6]
    whole_batch = model(batch(numbers), at())
    halves = [model(batch(part), at()) for part in (numbers[:2], numbers[2:])]
    torch.testing.assert_close(whole_batch.loss, torch.stack([one.loss for one in halves]).mean())
    accuracies = [one.metrics["train_accuracy"] for one in (whole_batch, *halves)]
    torch.testing.assert_close(accuracies[0], torch.stack(accuracies[1:]).mean())


# ---------------------------------------------------------------- scores


def test_scores_against_loops_over_pixels() -> None:
    torch.manual_seed(0)
    names = ("a", "b", "c", "d")
    pairs = [(torch.randint(-1, 3, (6, 7)).short(), torch.randint(0, 3, (6, 7))) for _ in range(3)]
    judged = [Judged(number, counts_of(*pair, 4)) for number, pair in enumerate(pairs)]
    result = scores_of(judged, names)
    both, there, said, right, all_ = [0] * 4, [0] * 4, [0] * 4, 0, 0
    for mask, found in pairs:
        for true, guess in zip(mask.flatten().tolist(), found.flatten().tolist(), strict=True):
            if true < 0:
                continue
            there[true], said[guess], all_ = there[true] + 1, said[guess] + 1, all_ + 1
            both[true] += true == guess
            right += true == guess
    each = [100 * both[c] / (there[c] + said[c] - both[c]) for c in range(3)]
    assert result["miou"] == pytest.approx(sum(each) / 3, abs=1e-3)
    assert result["pixel_accuracy"] == pytest.approx(100 * right / all_, abs=1e-3)
    found_each = [own["iou"] for own in result["per_class"].values()]
    assert found_each[:3] == pytest.approx(each, abs=1e-3) and found_each[3] is None
    of_b = result["per_class"]["b"]
    assert of_b["recall"] == pytest.approx(100 * both[1] / there[1], abs=1e-3)
    assert of_b["precision"] == pytest.approx(100 * both[1] / said[1], abs=1e-3)
    assert of_b["pixels"] == pytest.approx(100 * there[1] / all_, abs=1e-3)
    assert of_b["pictures"] == 3 and result["per_class"]["d"]["pictures"] == 0
    assert result["labelled_pixels"] == all_ and result["pictures"] == 3
    low, high = interval_of(judged) or (0, 0)
    assert low < result["miou"] < high
    perfect = Judged(0, counts_of(torch.tensor([[0, 2]]), torch.tensor([[0, 2]]), 4))
    assert scores_of([perfect], names)["miou"] == 100 and interval_of([perfect]) == [100, 100]
    json.dumps(result)


def test_pixels_are_classified_at_the_size_of_the_image() -> None:
    image = torch.zeros(3, 20, 50, dtype=torch.uint8)
    image[:, :, 25:] = 255
    seen = whole(image, (SIDE, SIDE), "bilinear")
    bright = seen.pixels.float().mean(0)
    scores = torch.stack([127 - bright, bright - 127])
    scores[1, seen.resized[0] :] = 1e6  # what is padded is not looked at
    found = classified(scores, seen)
    assert found.shape == (20, 50) and (found[:, :24] == 0).all() and (found[:, 26:] == 1).all()


# ---------------------------------------------------------------- what learns


def test_strategies_say_what_of_the_backbone_learns() -> None:
    prefix = "segmenter.backbone.encoder.vit."

    def learns(model: Segmentation) -> set[str]:
        return {name.removeprefix(prefix) for name, p in model.named_parameters() if p.requires_grad}

    frozen = segmentation(strategy={"name": "frozen"})
    assert not any(name.startswith(("blocks", "patch_embed")) for name in learns(frozen))
    assert any(name.startswith("segmenter.decoder") for name in learns(frozen))
    assert not frozen.backbone.encoder.training and frozen.backbone.pyramid.training
    lora = learns(segmentation(strategy={"name": "lora", "rank": 2}))
    assert {name.rpartition(".")[2] for name in lora if name.startswith("blocks.0")} == {"lora_down", "lora_up"}
    depth = segmentation(strategy={"name": "differential", "layer_decay": 0.5})
    scales = {name: depth.lr_scale(name) for name, _ in depth.named_parameters()}
    assert [scales[f"{prefix}blocks.{i}.attn.qkv.weight"] for i in (0, 1)] == [0.25, 0.5]
    assert {scale for name, scale in scales.items() if not name.startswith(prefix)} == {1.0}
    gradual = segmentation(encoder=cnn(), strategy={"name": "gradual", "unfreeze_every": 1.5})
    still = [len(list(gradual.inactive(at(step)))) for step in (0, 25, 95)]
    assert still[0] > still[1] > still[2] == 0


def test_averaged_weights_are_scored() -> None:
    model = segmentation(ema=0.5)
    before = [p.clone() for p in model.scored.parameters()]
    with torch.no_grad():
        for parameter in model.segmenter.parameters():
            parameter.add_(1.0)
    model.after_step(at())
    assert model.average is model.scored and not model.average.training
    assert all(
        torch.allclose(new, old + 0.5, atol=1e-5) for new, old in zip(model.scored.parameters(), before, strict=True)
    )
    assert segmentation().average is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": {"name": "attentive"}}, "strategy attentive is for classifiers"),
        ({"view": {"size": 32, "erase": 0.5}}, "erase is not for views with masks"),
        ({"view": {"size": 32, "mosaic": 0.5}}, "Extra inputs"),
        ({"classes": 3, "threshold": 128}, "classes and threshold are different ways to say what masks hold"),
        ({"values": [0, 255, 0]}, "0 stands in the list twice"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Config.model_validate(settings)


def test_watching_is_of_masks() -> None:
    config().check(Watching(every=2, metric="miou"), adamw.Config())
    with pytest.raises(ValueError, match=r"segment has no accuracy to watch: set watch.metric=miou"):
        config().check(Watching(every=2), adamw.Config())


# ---------------------------------------------------------------- learning, pictures and exports


def learnt(steps: int = 50, rate: float = 4e-3) -> tuple[Segmentation, list[float]]:
    model, losses = segmentation(), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps)
        loss = model(batch([(8 * step + i) % 48 for i in range(8)]), at(step)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_drawn_shapes_are_learnt_and_exported(tmp_path: Path) -> None:
    model, losses = learnt()
    assert losses[-1] < 0.3 * losses[0]
    numbers = range(1000, 1012)
    with torch.no_grad():
        found = model.predict(torch.stack([pixels(number) for number in numbers])).argmax(1)
    judged = [Judged(n, counts_of(mask_of(n), own, CLASSES)) for n, own in zip(numbers, found, strict=True)]
    scores = scores_of(judged, NAMES)
    assert scores["miou"] > 75 and min(own["iou"] for own in scores["per_class"].values()) > 60

    made = Made("x", "name: x\n", 48, "f" * 16, 50, 0, 0, encoder="runs/e/export", way="full", classes=NAMES)
    assert model.export(tmp_path / "export", HALVES, made)
    loaded = unlabeled.load_segmenter(tmp_path / "export")
    assert (loaded.classes, loaded.size) == (NAMES, (SIDE, SIDE))
    image = torch.from_numpy(draw(1003).pixels).permute(2, 0, 1)
    assert torch.equal(loaded([image])[0], found[3])
    # an image of another size is seen as a whole, and classified in its own pixels
    large = image.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :, :60]
    (other,) = loaded([large])
    true = mask_of(1003).repeat_interleave(3, 0).repeat_interleave(3, 1)[:, :60]
    assert other.shape == (96, 60) and (other == true)[true >= 0].float().mean() > 0.85
    # and the backbone is one for all commands
    assert torch.equal(load_encoder(tmp_path / "export").vit.pos_embed, model.backbone.encoder.vit.pos_embed)
    assert "unlabeled.load_segmenter" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")


def test_low_rank_products_are_added_in_an_export(tmp_path: Path) -> None:
    model = segmentation(strategy={"name": "lora", "rank": 2})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_()
    made = Made("x", "name: x\n", 8, "f" * 16, 1, 0, 0, classes=NAMES)
    model.eval().export(tmp_path / "a", HALVES, made)
    loaded = unlabeled.load_segmenter(tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.network(pixels(5).unsqueeze(0)), model.predict(pixels(5).unsqueeze(0)), atol=1e-4, rtol=1e-4
        )


def test_an_export_that_is_no_segmentation_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = Made("x", "name: x\n", 8, "f" * 16, 1, 0, 0, classes=NAMES)
    segmentation().export(tmp_path / "a", IMAGENET, made)
    (tmp_path / "a" / "MANIFEST.json").unlink()
    file = tmp_path / "a" / "config.json"
    text = file.read_text(encoding="utf-8")
    for old, new, says in (
        ('"width": 16', '"width": 0', r"config.json is refused: segmenter.settings.width"),
        ('"width": 16', '"width": 8', r"heads.safetensors does not fit the segmentation"),
        ('"segmenter"', '"other"', r"holds no segmentation. Take an export of task.name=segment"),
    ):
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=says):
            unlabeled.load_segmenter(tmp_path / "a")


def test_pictures_show_masks_and_what_is_found() -> None:
    model, made = segmentation().eval(), batch([3, 4])
    shown = model.pictures(made)
    assert shown is not None and shown.shape == (2, 3, 3, SIDE, SIDE)
    assert torch.equal(shown[:, 0], made.views[0].pixels[0])
    values = shown[0, 1, 0]
    assert len({round(values[mask_of(3) == number].unique().item(), 4) for number in (-1, 0, 1, 2)}) == 4
    image, mask = torch.full((3, 4, 4), 100, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int16)
    mask[0], mask[1] = UNLABELLED, 2
    drawn = tinted(image, mask, CLASSES)
    assert (drawn[:, 0] == 100).all()
    expected = (0.6 * colours(CLASSES)[2].float() + 0.4 * 100).round()
    assert torch.equal(drawn[:, 1, 0].float(), expected)
    assert beside(image, mask, mask, CLASSES, 16).shape == (3, 16, 48)
