"""Segmentation: confusion and IoU by loops over pixels, the head by AdamW by hand, pairs of pictures and masks."""

from __future__ import annotations

import argparse
import json
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.commands.evaluate import add_arguments, run
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, Evaluator, measured
from unlabeled.evaluate.probing import batches
from unlabeled.evaluate.protocols import segmentation
from unlabeled.evaluate.protocols.cka import Config as Cka
from unlabeled.evaluate.protocols.segmentation import Config as Segmentation
from unlabeled.evaluate.protocols.segmentation import feature_maps
from unlabeled.evaluate.segmentation_decoding import decode_mask
from unlabeled.evaluate.segmentation_heads import Map, PixelHeads, Standard, confusion, iou, miou, nearest, train_heads
from unlabeled.evaluate.segmentation_masks import open_scenes
from unlabeled.evaluate.segmentation_values import UNLABELLED, Coding
from unlabeled.evaluate.splits import Splits

CPU = torch.device("cpu")
PATCH = 4
FAST: dict[str, Any] = {"epochs": 6, "lrs": (3e-3, 3e-2), "batch_size": 8}


def draw(folder: Path, count: int, shapes: tuple[tuple[int, int], ...] = ((16, 24),), ignore: int = 255) -> None:
    """Pictures of a bright disc's corner on dark ground, their masks, and a row that nobody labelled."""
    random = np.random.Generator(np.random.PCG64(count))
    for i in range(count):
        height, width = shapes[i % len(shapes)]
        row, column = random.integers(0, height // 4) * 4, random.integers(0, width // 4) * 4
        mask = np.zeros((height, width), np.uint8)
        mask[row : row + 12, column : column + 12] = 1
        colours = np.array([[30, 30, 60], [220, 200, 90]], np.uint8)[mask]
        noise = random.integers(0, 20, colours.shape, dtype=np.uint8)
        mask[0] = ignore
        for name, pixels in ((f"{folder}/a", colours + noise), (f"{folder}_masks/a", mask)):
            Path(name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"{name}/{i}.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw(tmp_path / "train", 30)
    draw(tmp_path / "val", 10)
    return tmp_path


def make(model: str = "vit_tiny_patch16_224", side: int = 8) -> Encoder:
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "width": 16, "depth": 2, "heads": 2} if model.startswith(("vit", "beit")) else {}
    positions: Any = {"positions": "relative"} if model.startswith("beit") else {}
    return EncoderConfig(model=model, **sizes, **positions).build((side, side)).train()


def files(folder: Path) -> Files:
    return Files(path=str(folder), train="train", val="val")


def bench(folder: Path, encoder: Encoder | None = None) -> Bench:
    encoder = encoder or make()
    return Bench(encoder, Splits(Evaluation(), Opened(files(folder)), CPU, labels=False), encoder.image_size)


def scored(folder: Path, encoder: Encoder | None = None, **settings: Any) -> dict[str, float]:
    found = measured("segmentation", Segmentation(**{**FAST, **settings}), bench(folder, encoder))
    return {score.name: score.value for score in found}


def test_colours_are_told_apart_but_not_where_masks_are_of_other_pictures(pictures: Path) -> None:
    encoder, state = make(), torch.get_rng_state()
    found = scored(pictures, encoder)
    assert found["segmentation_miou"] > 85 and found["segmentation_accuracy"] > 90
    assert encoder.training and torch.equal(torch.get_rng_state(), state)
    assert scored(pictures, encoder) == found

    masks = sorted((pictures / "train_masks" / "a").iterdir(), key=lambda path: int(path.stem))
    contents = [path.read_bytes() for path in masks]
    for path, content in zip(masks, contents[7:] + contents[:7], strict=True):
        path.write_bytes(content)
    assert scored(pictures)["segmentation_miou"] < 60


def test_a_class_that_nothing_is_learnt_from_is_named(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored(pictures)
    assert not caplog.records
    file = next((pictures / "val_masks").rglob("*.png"))
    mask = np.array(Image.open(file))
    mask[:] = 2
    Image.fromarray(mask).save(file)
    assert scored(pictures)["segmentation_accuracy"] < 95
    assert "classes ['2'] are in masks of val and in none of train" in caplog.text


def test_iou_against_loops_over_pixels() -> None:
    random = torch.Generator().manual_seed(0)
    classes, maps = 5, []
    heads = PixelHeads(
        [torch.randn(classes, 3, generator=random) for _ in range(2)],
        [torch.randn(classes, generator=random) for _ in range(2)],
    )
    # class 3 is never predicted and class 4 neither predicted nor there
    for bias in heads.biases:
        bias[3:] = -99
    standard = Standard(torch.randn(3, generator=random), torch.rand(3, generator=random) + 0.5)
    for shape in ((6, 9), (7, 5)):
        mask = torch.randint(UNLABELLED, 4, shape, generator=random).to(torch.int16)
        maps.append(Map(torch.randn(2, 3, 3, generator=random).half(), mask))

    matrices = confusion(heads, standard, iter(maps))
    for head, (weight, bias) in enumerate(zip(*heads, strict=True)):
        counts = [[0, 0, 0] for _ in range(classes)]  # both, in the mask, predicted
        for features, mask in maps:
            logits = ((features.float() - standard.mean) * standard.scale) @ weight.T + bias
            upsampled = F.interpolate(logits.permute(2, 0, 1)[None], mask.shape, mode="bilinear")[0]
            for row in range(mask.shape[0]):
                for column in range(mask.shape[1]):
                    if mask[row, column] == -1:
                        continue
                    truth, predicted = int(mask[row, column]), int(upsampled[:, row, column].argmax())
                    counts[truth][0] += truth == predicted
                    counts[truth][1] += 1
                    counts[predicted][2] += 1
        assert matrices[head].sum(1).tolist() == [t for _, t, _ in counts]
        wanted = [b / (t + p - b) if t + p else math.nan for b, t, p in counts]
        assert wanted[3] == 0 and math.isnan(wanted[4])
        np.testing.assert_allclose(iou(matrices[head]), wanted, rtol=1e-12)
        assert miou(matrices)[head].item() == pytest.approx(sum(wanted[:4]) / 4, abs=1e-12)


def test_heads_against_adamw_by_hand() -> None:
    random = torch.Generator().manual_seed(1)
    config = Segmentation(epochs=3, batch_size=3, weight_decay=0.1)
    # of two sizes, so that batches are put together from groups
    maps = [
        Map(
            torch.randn(2, 2 + i % 2, 4, generator=random),
            torch.randint(UNLABELLED, 3, (4, 4 + 2 * (i % 2)), generator=random).to(torch.int16),
        )
        for i in range(7)
    ]
    standard = Standard.of(maps, CPU)
    heads = train_heads(maps, standard, 3, (0.02, 0.3), config, seed=5)
    for number, lr in enumerate((0.02, 0.3)):
        weight, bias = by_hand(maps, 3, lr, config)
        torch.testing.assert_close(heads.weights[number], weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.biases[number], bias, rtol=1e-4, atol=1e-5)


def by_hand(maps: list[Map], classes: int, lr: float, config: Segmentation) -> tuple[Tensor, Tensor]:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), the loss one pixel at a time."""
    tokens = torch.cat([features.flatten(0, 1) for features, _ in maps])
    norm = nn.BatchNorm1d(tokens.shape[1], eps=1e-6, affine=False, momentum=None)
    norm(tokens)
    # a batch norm remembers the unbiased variance
    norm.running_var *= (len(tokens) - 1) / len(tokens)
    norm.eval()
    parameters = [torch.zeros(classes, tokens.shape[1]), torch.zeros(classes)]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = list(batches(len(maps), config, 5))
    for step, rows in enumerate(steps, start=1):
        weight, bias = (p.clone().requires_grad_(True) for p in parameters)
        terms = []
        for row in rows.tolist():
            features, mask = maps[row]
            logits = (norm(features.flatten(0, 1)) @ weight.T + bias).unflatten(0, features.shape[:2])
            upsampled = F.interpolate(logits.permute(2, 0, 1)[None], mask.shape, mode="bilinear")[0]
            for (y, x), truth in np.ndenumerate(mask.numpy()):
                if truth != -1:
                    terms.append(-upsampled[:, y, x].log_softmax(0)[truth])
        (sum(terms) / len(terms)).backward()  # type: ignore[union-attr]
        now = lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / len(steps)))
        for p, leaf, m, v in zip(parameters, (weight, bias), first, second, strict=True):
            m.copy_(0.9 * m + 0.1 * leaf.grad)
            v.copy_(0.999 * v + 0.001 * leaf.grad**2)
            p *= 1 - now * config.weight_decay
            p -= now * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return parameters[0], parameters[1]


def test_the_rate_is_chosen_on_whole_masks_that_were_held_out(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[list[Map], tuple[float, ...]]] = []
    judged: list[list[Map]] = []
    good, bad = torch.tensor([[6, 2], [1, 3]]), torch.tensor([[4, 4], [2, 2]])

    def train(maps: list[Map], standard: Any, classes: int, lrs: tuple[float, ...], *_: Any) -> None:
        trained.append((maps, lrs))

    def judge(heads: Any, standard: Any, maps: Any) -> Tensor:
        judged.append(list(maps))
        return torch.stack([bad, good, good] if len(judged) == 1 else [good])

    monkeypatch.setattr(segmentation, "train_heads", train)
    monkeypatch.setattr(segmentation, "confusion", judge)
    found = scored(pictures, lrs=(0.3, 0.1, 0.01), loss_scale=2)
    assert found == pytest.approx({"segmentation_miou": 100 * (6 / 9 + 3 / 6) / 2, "segmentation_accuracy": 75})
    (kept, tried), (whole, chosen) = trained
    assert tried == (0.3, 0.1, 0.01) and chosen == (0.01,), "of equal ones the smallest"
    assert (len(kept), len(judged[0]), len(whole), len(judged[1])) == (27, 3, 30, 10)
    assert not {id(one.features) for one in kept} & {id(one.features) for one in judged[0]}
    assert {one.mask.shape for one in whole} == {(8, 12)}, "twice the grid of 4 x 6"
    assert {one.mask.shape for maps in judged for one in maps} == {(16, 24)}


def test_masks_get_smaller_by_the_pixel_at_each_centre() -> None:
    mask = torch.arange(6 * 9, dtype=torch.int16).view(6, 9)
    assert torch.equal(nearest(mask, (2, 3)), mask[1::3, 1::3])
    wanted = F.interpolate(mask[None, None].float(), (5, 13), mode="nearest-exact")[0, 0].to(torch.int16)
    assert torch.equal(nearest(mask, (5, 13)), wanted)


def test_maps_are_the_last_blocks_tokens_of_resized_pictures(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / split, 5, shapes=((16, 24), (10, 13)))
    encoder = make()
    scenes = open_scenes(Opened(files(tmp_path)), "train", patch=PATCH)
    scenes.coding = Coding.of((0, 1), 255)
    found = list(feature_maps(bench(tmp_path, encoder), scenes, Segmentation(blocks=2, batch_size=3)))
    # 10 lies between 8 and 12, and goes to the even number of patches
    assert [tuple(one.features.shape) for one in found] == [(4, 6, 32), (2, 3, 32)] * 2 + [(4, 6, 32)]
    for i, (features, mask) in enumerate(found):
        stored = np.array(Image.open(tmp_path / "train_masks" / "a" / f"{i}.png")).astype(np.int16)
        assert np.array_equal(mask, np.where(stored == 255, -1, stored))
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / "train" / "a" / f"{i}.png"))).permute(2, 0, 1)
        small = F.interpolate(
            pixels[None], [PATCH * side for side in features.shape[:2]], mode="bicubic", antialias=True
        )
        mean, std = torch.tensor(files(tmp_path).mean), torch.tensor(files(tmp_path).std)
        images = (small.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        with torch.no_grad():
            tokens = torch.cat([one.patches for one in encoder.eval().intermediate(images, (0, 1))], dim=2)
        torch.testing.assert_close(features.flatten(0, 1).float(), tokens[0], rtol=2e-3, atol=2e-3)


def test_a_cnns_last_map_and_a_tar_are_the_same_to_it(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2)):
        draw(tmp_path / "folder" / split, count, shapes=((64, 96),))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted((tmp_path / "folder").rglob("*.png")):
            tar.add(path, str(path.relative_to(tmp_path / "folder")))
    encoder = make("resnet10t", side=64)
    found = scored(tmp_path / "folder", encoder, epochs=2)
    assert 0 < found["segmentation_miou"] < 100
    assert scored(tmp_path / "all.tar", encoder, epochs=2) == found


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_are_read_as_they_are_stored(bits: int, palette: bool) -> None:
    if palette and bits == 16:
        pytest.skip("there is no such PNG")
    values = np.random.Generator(np.random.PCG64(0)).integers(0, 2**bits, (5, 7))
    assert np.array_equal(decode_mask(png(values, bits, palette)), values)


def png(values: np.ndarray, bits: int, palette: bool) -> bytes:
    """A PNG written from its specification (ISO/IEC 15948), section 7.2: samples packed into bytes, high bits first."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        lines += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(3)) * 2**bits) if palette else b""
    image = chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda at: (at / "val_masks").rename(at / "lost"), {}, "needs the masks of val: .*val_masks/a/x.png"),
        (
            lambda at: (at / "train_masks/a/3.png").unlink(),
            {},
            "1 of 30 pictures have no mask, the first is .*train/a/3",
        ),
        (
            lambda at: save(at / "train_masks/a/3.png", np.zeros((16, 20), np.uint8)),
            {},
            "train_masks/a/3.png has 16 rows of 20 pixels, but .*train/a/3.png 16 of 24",
        ),
        (
            lambda at: save(at / "val_masks/a/3.png", np.full((16, 24), 1024, np.uint16)),
            {},
            r"masks hold 0 .*, 1 .*, 255 .*, 1024 .*without a gap.*segmentation.values=\[0,1,255,1024\]",
        ),
        (lambda _: None, {"ignore": 11, "classes": 2}, "holds 255; expected classes 0 to 1, or 11 .*ignore=255"),
        (lambda at: save(at / "val_masks/a/3.png", np.full((16, 24, 3), 1, np.uint8)), {}, None),
        (lambda at: (at / "val_masks/a/3.png").write_bytes(b"none"), {}, "val_masks/a/3.png: no PNG.* Mend it"),
        (lambda at: (at / "train/a/3.png").write_bytes(b"none"), {}, "train/a/3.png: not a picture.* Mend it"),
        (lambda _: None, {"ignore": 1, "classes": 256}, None),
        (lambda at: [save(p, np.zeros((16, 24), np.uint8)) for p in (at / "train_masks/a").iterdir()], {}, r"\['0'\]"),
        (lambda _: None, {"size": (8, 10)}, r"size=\[8, 10\].*patches of 4 pixels.* Use segmentation.size=\[8, 8\]"),
        (lambda _: None, {"blocks": 3}, "has 2 blocks, found blocks=3"),
    ],
)
def test_what_is_wrong_is_said(pictures: Path, spoil: Any, settings: dict[str, Any], message: str | None) -> None:
    spoil(pictures)
    if message is None:
        assert 0 < scored(pictures, **settings)["segmentation_miou"] < 100
        return
    with pytest.raises(UserError, match=message):
        scored(pictures, **settings)


def test_a_class_that_only_test_masks_have_counts(pictures: Path) -> None:
    save(pictures / "val_masks" / "a" / "0.png", np.full((16, 24), 2, np.uint8))
    miou, _ = Segmentation(**FAST).scores(bench(pictures))
    each = miou.details["iou"]  # type: ignore[union-attr,index]
    assert list(each) == ["0", "1", "2"] and each["2"] == 0
    assert miou.value == pytest.approx(sum(each.values()) / 3)  # type: ignore[union-attr]


def test_an_encoder_that_has_diverged_is_named(pictures: Path) -> None:
    encoder = make()
    nn.init.constant_(encoder.vit.norm.bias, 1e5)
    with pytest.raises(UserError, match="not finite, or beyond the 65,504"):
        scored(pictures, encoder)


def test_relative_positions_are_for_one_size(pictures: Path) -> None:
    encoder = make("beit_base_patch16_224")
    with pytest.raises(UserError, match=r"own size only: expected segmentation.size=\[8,8\], found None"):
        scored(pictures, encoder)
    assert scored(pictures, encoder, size=(8, 8))["segmentation_miou"] > 30


def test_the_command_needs_no_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / split, 5)
        for name in (split, f"{split}_masks"):
            for path in (tmp_path / name / "a").iterdir():
                path.rename(tmp_path / name / path.name)
            (tmp_path / name / "a").rmdir()
    prepared = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    export_encoder(tmp_path / "export", make(), prepared, "card", {})
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--baselines", "--device", "cpu", "--workers", "1", "--json", str(tmp_path / "found.json")]
    options += ["--markdown", str(tmp_path / "found.md")]
    protocol = ["--protocol", "segmentation", "--set", "segmentation.epochs=2", "segmentation.size=[8,12]"]
    protocol += ["--allow-overlap"]  # both splits are drawn alike
    command = [str(tmp_path / "export"), "--data", str(tmp_path), *protocol, *options]
    assert run(parser.parse_args(command)) == 0
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    measured = {row["name"]: row["scores"] for row in rows if row["scores"]}
    assert list(measured) == [str(tmp_path / "export"), "untrained vit_tiny_patch16_224 (2 x 16)"]
    for scores in measured.values():
        [details] = scores["segmentation_miou"]["details"]
        assert scores["segmentation_miou"]["mean"] == pytest.approx(sum(details["iou"].values()) / 2)
    table = (tmp_path / "found.md").read_text(encoding="utf-8")
    first = rows[0]["scores"]["segmentation_miou"]["details"][0]["iou"]
    assert f"| 1     | {first['1']:.1f} ".replace(" ", "") in table.replace(" ", "")

    (tmp_path / "val" / "0.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"^[^\n]*0.png: not a picture[^\n]*$"):
        run(parser.parse_args(command))


def test_it_is_a_section_of_pretraining_recipes_beside_cka(pictures: Path) -> None:
    config = Evaluation(pool="mean", knn=None, linear=None, cka=Cka(), segmentation=Segmentation(epochs=4))
    splits = Splits(config, Opened(files(pictures)), torch.device("cpu"), labels=config.needs_labels)
    found = dict(Evaluator(config, splits, (8, 8))(make()))
    assert set(found) == {"cka_neighbours", "cka_ends", "segmentation_miou", "segmentation_accuracy"}
    assert found["segmentation_miou"] == scored(pictures, epochs=4)["segmentation_miou"]


def test_maps_of_several_stages_stand_side_by_side_at_the_finest(tmp_path: Path) -> None:
    """Against a loop over positions; ConvNeXt's last two maps have 16 and 32 pixels a side."""
    for split in ("train", "val"):
        draw(tmp_path / split, 2, shapes=((64, 96),))
    torch.manual_seed(0)
    encoder = EncoderConfig(model="test_convnext").build((64, 64))
    images = torch.randn(2, 3, 64, 96)
    found = segmentation.encoded(encoder, images, Segmentation(stages=2)).float()
    with torch.no_grad():
        fine, coarse = encoder.eval().stages(images)[-2:]
    assert found.shape == (2, 4, 6, fine.shape[1] + coarse.shape[1]) and coarse.shape[-2:] == (2, 3)
    torch.testing.assert_close(found[:, 1, 2, : fine.shape[1]], fine[:, :, 1, 2], rtol=1e-3, atol=1e-3)
    # position (1, 2) of the fine map lies a quarter into (0, 0) to (1, 1) of the coarse one
    rows = 0.75 * coarse[:, :, 0] + 0.25 * coarse[:, :, 1]
    expected = 0.25 * rows[:, :, 0] + 0.75 * rows[:, :, 1]
    torch.testing.assert_close(found[:, 1, 2, fine.shape[1] :], expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(UserError, match=r"stages=9: test_convnext has 4 stages\. Ask for fewer"):
        list(Segmentation(stages=9).scores(bench(tmp_path, encoder)))
    with pytest.raises(ValueError, match=r"expected blocks or stages, found both \(2, 2\)"):
        Segmentation(stages=2, blocks=2)
