"""The task detect: backbones, both detectors, their losses and draws, what learns, and what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from boxed import NAMES, draw
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

import unlabeled
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.label.boxes import BatchBoxes, Boxes
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.report.card import Made
from unlabeled.train.optimizers import adamw
from unlabeled.train.watch import Watching
from unlabeled.transfer.detection.backbone import Backbone, factors_for, last_of_each
from unlabeled.transfer.detection.predicting import Judged
from unlabeled.transfer.detection.sampling import Sampler
from unlabeled.transfer.detection.score import scores_of
from unlabeled.transfer.tasks.detect import Config, Detection

SIDE = 32
SMALL: dict[str, dict[str, Any]] = {
    "retinanet": {"channels": 16, "finest": 4, "anchor": 2.0},
    "faster_rcnn": {
        "channels": 16,
        "finest": 4,
        "anchor": 2.0,
        "width": 32,
        "anchors": 64,
        "proposals": 32,
        "kept": 50,
    },
}
both = pytest.mark.parametrize("name", SMALL)


def vit(**more: Any) -> Encoder:
    torch.manual_seed(0)
    sizes: Any = {"patch_size": 4, "width": 32, "depth": 2, "heads": 2, **more}
    return EncoderConfig(model="vit_tiny_patch16_224", **sizes).build((SIDE, SIDE))


def cnn() -> Encoder:
    torch.manual_seed(0)
    return EncoderConfig(model="test_resnet").build((64, 64))


def config(name: str = "retinanet", detector: dict[str, Any] | None = None, **more: Any) -> Config:
    settings = {"name": name, **SMALL[name], **(detector or {})}
    return Config.model_validate({"view": {"size": SIDE}, "detector": settings, **more})


def detection(name: str = "retinanet", encoder: Encoder | None = None, seed: int = 0, **more: Any) -> Detection:
    torch.manual_seed(1)
    return Detection(encoder or vit(), config(name, **more), len(NAMES), seed).train()


def pixels(number: int, side: int = SIDE) -> Tensor:
    return (torch.from_numpy(draw(number, side).pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


def boxes_of(number: int, side: int = SIDE) -> Boxes:
    rows = torch.tensor(draw(number, side).boxes)
    sides = rows[:, 2:4] - rows[:, :2]
    none = torch.zeros(len(rows), dtype=torch.bool)
    return Boxes(rows[:, :4].float(), rows[:, 4], none, sides.prod(1).double())


def batch(numbers: Sequence[int], empty: Sequence[int] = (), side: int = SIDE) -> Batch:
    """Drawn images by number; some have no boxes, whatever is on them."""
    boxes = [
        boxes_of(number, side).chosen(torch.tensor([number not in empty])[[0] * len(draw(number).boxes)])
        for number in numbers
    ]
    index = torch.tensor(numbers)
    view = ViewBatch(torch.stack([pixels(number, side) for number in numbers]).unsqueeze(0), None)
    return Batch([view], torch.zeros_like(index), index, boxes=BatchBoxes.of(boxes))


def at(step: int = 0) -> Progress:
    return Progress(step, 100, step / 10, 10.0)


# ---------------------------------------------------------------- backbones


def test_a_vit_gets_a_pyramid_and_stages_get_torchvisions() -> None:
    plain = Backbone(vit(), 8, 4)
    assert plain.strides == [4, 8, 16] and plain.names == ["p2", "p3"]
    assert {name: tuple(one.shape) for name, one in plain(torch.randn(2, 3, SIDE, SIDE)).items()} == {
        "p2": (2, 8, 8, 8),
        "p3": (2, 8, 4, 4),
        "p4": (2, 8, 2, 2),
    }
    stages = Backbone(cnn(), 8, 4)
    assert stages.strides == [4, 8, 16, 32, 64] and stages.names == ["0", "1", "2", "3"]
    found = stages(torch.randn(2, 3, 64, 64))
    assert [64 // one.shape[-1] for one in found.values()] == stages.strides
    assert Backbone(cnn(), 8, 16).strides == [16, 32, 64]


def test_levels_are_chosen_by_their_strides() -> None:
    assert factors_for(16, 4) == [4, 2, 1, 0.5] and factors_for(16, 8) == [2, 1, 0.5]
    assert factors_for(14, 4) == [2, 1, 0.5] and factors_for(4, 32) == [0.5]
    assert last_of_each([(1, 3, 8, 8), (1, 3, 8, 8), (1, 4, 4, 4), (1, 4, 4, 4), (1, 5, 2, 2)]) == [1, 3, 4]


def test_the_map_is_that_of_the_last_block_without_its_norm() -> None:
    encoder = vit()
    model = Backbone(encoder, 8, 4)
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        before = model(images)
        encoder.vit.norm.weight.mul_(3)
        after = model(images)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(before["p2"], model.pyramid(encoder.stages(images)[-1])["p2"])
    assert not encoder.vit.norm.weight.requires_grad and encoder.vit.blocks[1].mlp.fc2.weight.requires_grad


def test_blocks_are_dropped_of_a_cnn_alone_and_in_training_alone() -> None:
    dropping = Backbone(cnn(), 8, 4, drop_block=0.5)
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    one, other = dropping.train()(images), dropping(images)
    assert not torch.equal(one["3"], other["3"])
    assert torch.equal(dropping.eval()(images)["3"], dropping(images)["3"])
    torch.manual_seed(1)
    whole = Backbone(cnn(), 8, 4).train()
    assert whole.drop is None
    with pytest.raises(UserError, match=r"task.drop_block=0.2 drops blocks of a CNN's stages"):
        Backbone(vit(), 8, 4, drop_block=0.2)


# ---------------------------------------------------------------- losses


@both
def test_all_that_learns_has_a_gradient_and_losses_are_named(name: str) -> None:
    for encoder in (None, cnn()):
        side = SIDE if encoder is None else 64
        model = detection(name, encoder)
        output = model(batch([1, 2], side=side), at())
        output.loss.backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        names = {
            "retinanet": {"loss_classification", "loss_bbox_regression"},
            "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
        }
        assert set(output.metrics) == names[name]
        assert torch.stack(list(output.metrics.values())).sum().item() == pytest.approx(output.loss.item())


def test_retinanets_losses_are_torchvisions() -> None:
    model = detection()
    net = model.detector.net
    other = RetinaNet(
        net.backbone,
        len(NAMES),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        fixed_size=(SIDE, SIDE),
        anchor_generator=net.anchor_generator,
        head=net.head,
    ).train()
    made = batch([3, 4, 5])
    assert made.boxes is not None
    targets = [{"boxes": corners, "labels": classes} for corners, classes in made.boxes.each()]
    official = other(list(made.views[0].pixels[0]), targets)
    ours = model(made, at()).metrics
    for name, value in official.items():
        torch.testing.assert_close(ours[f"loss_{name}"], value.detach())


def test_faster_rcnns_losses_are_torchvisions_where_images_have_as_many_samples() -> None:
    model = detection("faster_rcnn", detector={"anchors": 16, "proposals": 8})
    net, made = model.detector.net, batch([3, 4, 5])
    ours = model(made, at(4)).metrics
    net.rpn.compute_loss = partial(RegionProposalNetwork.compute_loss, net.rpn)
    net.roi_heads.forward = partial(RoIHeads.forward, net.roi_heads)
    official = model(made, at(4)).metrics
    assert official.keys() == ours.keys()
    for name, value in official.items():
        torch.testing.assert_close(ours[name], value)


@both
def test_the_loss_is_the_mean_over_images_whatever_the_process(name: str) -> None:
    model = detection(name)
    numbers = [3, 4, 5, 6]
    whole = model(batch(numbers, empty=[5]), at(7))
    halves = [model(batch(part, empty=[5]), at(7)) for part in (numbers[:2], numbers[2:])]
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in halves]).mean())
    turned = model(batch(numbers[::-1], empty=[5]), at(7))
    torch.testing.assert_close(whole.loss, turned.loss)


def test_samples_are_drawn_from_step_and_image() -> None:
    labels = [torch.tensor([1.0] * 20 + [0.0] * 50 + [-1.0] * 10), torch.tensor([0.0] * 30 + [2.0])]

    def drawn(*draws: tuple[int, int], seed: int = 0, stage: int = 0) -> list[tuple[list[int], list[int]]]:
        sampler = Sampler(16, 0.5, seed, stage)
        sampler.draws = draws
        masks = zip(*sampler(labels[: len(draws)]), strict=True)
        return [(a.nonzero().flatten().tolist(), b.nonzero().flatten().tolist()) for a, b in masks]

    one, other = drawn((0, 5), (0, 6))
    assert len(one[0]) == 8 and len(one[1]) == 8 and set(one[0]) < set(range(20)) and set(one[1]) < set(range(20, 70))
    assert other[0] == [30] and len(other[1]) == 15
    assert drawn((0, 5)) == [one]
    for found in (drawn((1, 5)), drawn((0, 6)), drawn((0, 5), seed=1), drawn((0, 5), stage=1)):
        assert found[0] != one
    many = {number for step in range(200) for number in drawn((step, 5))[0][1]}
    assert many == set(range(20, 70))


def test_faster_rcnn_draws_from_the_step_and_nothing_else() -> None:
    model, made = detection("faster_rcnn", detector={"anchors": 8, "proposals": 8}), batch([3, 4])
    torch.manual_seed(5)
    first = model(made, at(2)).loss
    torch.manual_seed(6)
    assert torch.equal(model(made, at(2)).loss, first)
    assert not torch.equal(model(made, at(3)).loss, first)
    assert not torch.equal(
        detection("faster_rcnn", seed=9, detector={"anchors": 8, "proposals": 8})(made, at(2)).loss, first
    )


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    """1 - generalised intersection over union, of two boxes."""
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - common / union + (hull - union) / hull


def test_boxes_can_be_learnt_by_their_overlap() -> None:
    model = detection(detector={"box_loss": "giou"})
    head, made = model.detector.net.head.regression_head, batch([3])
    torch.nn.init.zeros_(head.bbox_reg.weight)  # boxes are the anchors
    found = model(made, at()).metrics["loss_bbox_regression"]
    net = model.detector.net
    images, _ = net.transform(list(made.views[0].pixels[0]))
    (anchors,) = net.anchor_generator(images, list(net.backbone(images.tensors).values()))
    corners = boxes_of(3).corners
    overlap = torch.stack([torch.tensor([iou(a, b) for a in anchors.tolist()]) for b in corners.tolist()])
    matched = net.proposal_matcher(overlap)
    pairs = [(a, corners[m].tolist()) for a, m in zip(anchors.tolist(), matched.tolist(), strict=True) if m >= 0]
    assert found.item() == pytest.approx(sum(giou(*pair) for pair in pairs) / len(pairs), rel=1e-4)
    losses = [
        detection(detector={"box_loss": kind})(made, at()).metrics["loss_bbox_regression"] for kind in ("l1", "ciou")
    ]
    assert len({round(loss.item(), 5) for loss in (*losses, found)}) == 3


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_faster_rcnns_second_stage_can_learn_by_overlap() -> None:
    made, found = batch([3, 4]), {}
    for kind in ("l1", "giou", "ciou"):
        model = detection("faster_rcnn", detector={"box_loss": kind})
        heads = model.detector.net.roi_heads
        torch.nn.init.zeros_(heads.box_predictor.bbox_pred.weight)
        torch.nn.init.zeros_(heads.box_predictor.bbox_pred.bias)
        kept: list[Any] = []
        select = heads.select_training_samples

        def keep(*arguments: Any, select: Any = select, kept: list[Any] = kept) -> Any:
            kept.append(select(*arguments))
            return kept[-1]

        heads.select_training_samples = keep
        found[kind] = model(made, at()).metrics["loss_box_reg"].item()
        proposals, matches, labels, _ = kept[0]
        if kind == "giou":
            each = []
            for number, (boxes, match, label) in enumerate(zip(proposals, matches, labels, strict=True)):
                true = boxes_of((3, 4)[number]).corners[match].tolist()
                rows = zip(boxes.tolist(), true, label.tolist(), strict=True)
                each.append(sum(giou(box, own) for box, own, kind_ in rows if kind_ > 0) / len(label))
            assert found[kind] == pytest.approx(sum(each) / 2, rel=1e-3)
    assert len({round(value, 5) for value in found.values()}) == 3


# ---------------------------------------------------------------- what learns


def learns(model: Detection) -> set[str]:
    return {
        name.removeprefix("detector.net.backbone.encoder.vit.")
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def test_strategies_say_what_of_the_backbone_learns() -> None:
    frozen = detection(strategy={"name": "frozen"})
    assert not any(name.startswith(("blocks", "patch_embed")) for name in learns(frozen))
    assert not frozen.backbone.encoder.training and frozen.backbone.pyramid.training
    lora = learns(detection(strategy={"name": "lora", "rank": 2}))
    assert {name for name in lora if name.startswith("blocks.0")} == {
        f"blocks.0.{layer}.lora_{way}"
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for way in ("down", "up")
    }
    depth = detection(strategy={"name": "differential", "layer_decay": 0.5})
    scales = {name: depth.lr_scale(name) for name, _ in depth.named_parameters()}
    prefix = "detector.net.backbone.encoder.vit."
    assert [scales[prefix + name] for name in ("patch_embed.proj.weight", "pos_embed")] == [0.125] * 2
    assert [scales[f"{prefix}blocks.{i}.attn.qkv.weight"] for i in (0, 1)] == [0.25, 0.5]
    assert {scale for name, scale in scales.items() if not name.startswith(prefix)} == {1.0}
    paths = detection(strategy={"name": "full", "drop_path": 0.2}).backbone.encoder.vit.blocks
    assert paths[1].drop_path1.drop_prob == pytest.approx(0.2)


def test_layers_are_unfrozen_one_after_another() -> None:
    model = detection(encoder=cnn(), strategy={"name": "gradual", "unfreeze_every": 1.5})
    still = [{id(p) for p in model.inactive(at(step))} for step in (0, 25, 95)]
    assert len(still[0]) > len(still[1]) > len(still[2]) == 0
    norms = [
        part for part in model.backbone.encoder.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
    ]
    made = batch([1, 2], side=64)
    model(made, at(0))
    assert not any(norm.training for norm in norms[:2])
    model(made, at(95))
    assert all(norm.training for norm in norms)


def test_norms_biases_tokens_and_positions_do_not_decay() -> None:
    model = detection()
    still = {name for name, p in model.named_parameters() if not model.decays(name, p)}
    assert {name.rpartition(".")[2] for name in still if dict(model.named_parameters())[name].ndim > 1} == {
        "cls_token",
        "pos_embed",
    }


def test_averaged_weights_are_scored() -> None:
    model = detection(ema=0.5)
    before = [p.clone() for p in model.scored.parameters()]
    with torch.no_grad():
        for parameter in model.detector.parameters():
            parameter.add_(1.0)
    model.after_step(at())
    assert model.average is model.scored and not model.average.training
    assert all(
        torch.allclose(new, old + 0.5, atol=1e-5) for new, old in zip(model.scored.parameters(), before, strict=True)
    )
    assert detection().scored is not None and detection().average is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": {"name": "attentive"}}, "strategy attentive is for classifiers"),
        ({"strategy": {"name": "retrain"}}, "strategy retrain is for classifiers"),
        ({"strategy": {"name": "linear"}}, "strategy linear is for classifiers"),
        ({"label_smoothing": 0.1}, "Extra inputs"),
        ({"detector": {"name": "yolo"}}, "yolo"),
        ({"view": {"size": 32, "ratio": [1.0, 1.0]}}, "ratio is not for views with boxes"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Config.model_validate(settings)


def test_watching_is_of_boxes_and_strides_are_powers_of_two() -> None:
    config().check(Watching(every=2, metric="map"), adamw.Config())
    with pytest.raises(ValueError, match=r"detect has no accuracy to watch: set watch.metric=map"):
        config().check(Watching(every=2), adamw.Config())
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=14, width=16, depth=1, heads=2).build((28, 28))
    with pytest.raises(UserError, match=r"strides 4, 8, 16 and so on, found \[7, 14, 28, 56\]"):
        detection("faster_rcnn", encoder)
    assert detection("retinanet", encoder).backbone.strides == [7, 14, 28, 56]


# ---------------------------------------------------------------- learning and exports


def learnt(name: str, steps: int, rate: float, images: int = 48, **detector: Any) -> tuple[Detection, list[float]]:
    model, losses = detection(name, detector=detector), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps)
        numbers = torch.randperm(images, generator=generator)[:8].tolist()
        loss = model(batch(numbers), at(step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def score(model: Detection, numbers: Sequence[int]) -> dict[str, Any]:
    with torch.no_grad():
        found = model.predict(torch.stack([pixels(number) for number in numbers]))
    return scores_of([Judged(n, boxes_of(n), one) for n, one in zip(numbers, found, strict=True)], NAMES)


def test_faster_rcnn_learns_to_find_drawn_boxes_and_is_exported(tmp_path: Path) -> None:
    model, losses = learnt("faster_rcnn", 60, 6e-3)
    assert losses[-1] < 0.6 * losses[0]
    new = score(model, range(1000, 1012))
    assert new["map50"] > 60 and new["per_class"]["red"]["map50"] > 40 and new["per_class"]["green"]["map50"] > 40
    made = Made("x", "name: x\n", 48, "f" * 16, 70, 0, 0, encoder="runs/e/export", way="full", classes=NAMES)
    prepared = IMAGENET._replace(mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")
    assert model.export(tmp_path / "export", prepared, made)
    loaded = unlabeled.load_detector(tmp_path / "export")
    assert (loaded.classes, loaded.size) == (NAMES, (SIDE, SIDE))
    image = torch.from_numpy(draw(1003).pixels).permute(2, 0, 1)
    (found,) = loaded([image])
    with torch.no_grad():
        (expected,) = model.predict(pixels(1003).unsqueeze(0))
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    assert len(found) > 0 and set(found.labels) <= set(NAMES)
    assert len(loaded([image], score=1.1)[0]) == 0
    # an image of another size is seen as a whole, and its boxes are in its own pixels
    large = image.repeat_interleave(3, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(loaded([large], 0.5)[0].boxes / 3, loaded([image], 0.5)[0].boxes, atol=1.5, rtol=0)
    # and the backbone is one for all commands
    assert torch.equal(load_encoder(tmp_path / "export").vit.pos_embed, model.backbone.encoder.vit.pos_embed)
    assert "unlabeled.load_detector" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")


def test_retinanet_learns_to_find_drawn_boxes() -> None:
    model, losses = learnt("retinanet", 60, 8e-3, images=4, channels=64)
    assert losses[-1] < 0.5 * losses[0]
    assert score(model, range(4))["map50"] > 75


def test_low_rank_products_are_added_in_an_export(tmp_path: Path) -> None:
    model = detection(strategy={"name": "lora", "rank": 2}, detector={"score": 0.0})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_()
    made = Made("x", "name: x\n", 8, "f" * 16, 1, 0, 0, classes=NAMES)
    model.eval().export(tmp_path, IMAGENET._replace(mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"), made)
    (found,) = unlabeled.load_detector(tmp_path)([torch.from_numpy(draw(5).pixels).permute(2, 0, 1)])
    with torch.no_grad():
        (expected,) = model.predict(pixels(5).unsqueeze(0))
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)


def test_an_export_that_is_no_detector_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = Made("x", "name: x\n", 8, "f" * 16, 1, 0, 0, classes=NAMES)
    detection().export(tmp_path / "a", IMAGENET, made)
    (tmp_path / "a" / "MANIFEST.json").unlink()
    text = (tmp_path / "a" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "a" / "config.json").write_text(text.replace('"channels": 16', '"channels": 0'), encoding="utf-8")
    with pytest.raises(UserError, match=r"config.json is refused: detector.settings.retinanet.channels"):
        unlabeled.load_detector(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(text.replace('"channels": 16', '"channels": 8'), encoding="utf-8")
    with pytest.raises(UserError, match=r"heads.safetensors does not fit the detector"):
        unlabeled.load_detector(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(text.replace('"detector"', '"other"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no detector. Take an export of task.name=detect"):
        unlabeled.load_detector(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(text, encoding="utf-8")
    heads = safetensors.torch.load_file(tmp_path / "a" / "heads.safetensors")
    assert not any("encoder" in name for name in heads)


def test_pictures_show_what_is_there_and_what_is_found() -> None:
    model, made = detection(detector={"score": 0.0}).eval(), batch([3, 4])
    shown = model.pictures(made)
    assert shown is not None and shown.shape == (2, 2, 3, SIDE, SIDE)
    left, top, right, bottom = boxes_of(3).corners[0].long().tolist()
    images = made.views[0].pixels[0]
    assert (shown[0, 0, :, top, left : min(right, SIDE - 1)] == images.max()).all()
    changed = (shown[0, 0] != images[0]).any(0)
    assert not changed[top + 1 : bottom - 1, left + 1 : right - 1].any() and not changed[: top - 1].all()
