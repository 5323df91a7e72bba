"""`unlabeled.load` gives what `unlabeled embed` writes and what timm computes, whatever images are given as."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import unlabeled
from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder, timm_config, write_export

COUNT, BAD, BATCH = 13, (4, 11), 5
PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")
SMALL = {"patch_size": 8, "width": 16, "depth": 2, "heads": 2}
CLASSES = ("ant", "bee", "cow")


def export(folder: Path, classes: tuple[str, ...] = (), channels: int = 3, **prepared: Any) -> str:
    torch.manual_seed(0)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", channels=channels, **SMALL).build((32, 32))
    for weights in encoder.parameters():  # tokens that differ
        nn.init.normal_(weights, std=0.2)
    how = PREPARED._replace(**prepared)
    if not classes:
        export_encoder(folder, encoder, how, "card", {})
        return str(folder)
    config = timm_config(encoder.model, encoder.arguments, encoder.width, how, len(classes), classes)
    model = timm.create_model(encoder.model, num_classes=len(classes), **config["model_args"])
    model.load_state_dict(encoder.vit.state_dict(), strict=False)
    nn.init.normal_(model.get_classifier().weight)
    write_export(folder, dict(model.state_dict()), config, "card")
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures of two classes, two of them broken, and an export."""
    home, random = tmp_path_factory.mktemp("python"), np.random.default_rng(0)
    for number in range(COUNT):
        file = home / "pictures" / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(256, size=(5, 5, 3), dtype=np.uint8))
        small.resize((40 + number, 44), Image.Resampling.BICUBIC).save(file)
        if number in BAD:
            file.write_bytes(b"no picture")
    export(home / "export")
    return home


@pytest.fixture(scope="module")
def model(home: Path) -> unlabeled.Model:
    return unlabeled.load(home / "export", device="cpu")


@pytest.fixture(scope="module")
def files(home: Path) -> list[str]:
    """The good ones."""
    return sorted(str(f) for f in (home / "pictures").rglob("*.png") if int(f.stem) not in BAD)


def of_timm(home: Path, files: list[str]) -> Tensor:
    """timm's own model on timm's own transform."""
    network = timm.create_model(f"local-dir:{home / 'export'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    with torch.no_grad():
        return network(torch.stack([transform(Image.open(file)) for file in files]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_gives_what_the_command_writes(
    home: Path, model: unlabeled.Model, tmp_path: Path, workers: int
) -> None:
    options = ["--batch-size", str(BATCH), "--workers", "0", "--device", "cpu", "--tokens", "--pool", "mean"]
    assert main(["embed", str(home / "export"), str(home / "pictures"), str(tmp_path / "out"), *options]) == 0
    written = load_file(tmp_path / "out" / "features-00000.safetensors")
    found = model.embed(home / "pictures", batch_size=BATCH, tokens=True, pool="mean", workers=workers)
    assert torch.equal(found.features, written["features"])
    assert found.tokens is not None and torch.equal(found.tokens, written["tokens"])
    assert found.labels.tolist() == written["label"].tolist() and found.classes == ("a", "b")
    reasons = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{"key": key, "reason": reason} for key, reason in found.bad] == reasons and len(reasons) == len(BAD)
    assert [Path(key).stem for key in found.keys] == [Path(key).stem for key in sorted(found.keys)]


def test_it_is_timms(home: Path, model: unlabeled.Model, files: list[str]) -> None:
    expected = of_timm(home, files)
    found = model.embed(files).features
    # Pillow and torch resize to values that differ by one in 255
    assert (found - expected).norm() < 0.02 * (expected - expected.roll(1, 0)).norm()


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "paths": lambda files: [Path(file) for file in files],
    "an array of paths": lambda files: np.array(files),
    "Pillow": lambda files: tuple(Image.open(file) for file in files),
    "arrays": lambda files: [np.array(Image.open(file)) for file in files],
    "read-only": lambda files: [np.asarray(Image.open(file)) for file in files],
    "floats": lambda files: [np.array(Image.open(file)) / 255 for file in files],
    "half": lambda files: [torch.from_numpy(np.array(Image.open(f)) / 255).half().permute(2, 0, 1) for f in files],
    "16 bits": lambda files: [np.array(Image.open(file)).astype(np.uint16) * 257 for file in files],
    "tensors": lambda files: [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files],
    "flipped twice": lambda files: [np.array(Image.open(file))[:, ::-1].copy()[:, ::-1] for file in files],
    "a generator": lambda files: (Image.open(file) for file in files),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(model: unlabeled.Model, files: list[str], form: str) -> None:
    found = model.embed(FORMS[form](files))
    assert torch.equal(found.features, model.embed(files).features)
    assert np.array_equal(np.asarray(found), found.features.numpy()) and found.shape == (len(files), 16)


def test_one_image_and_batches(model: unlabeled.Model, files: list[str]) -> None:
    same = [np.array(Image.open(file).resize((40, 36))) for file in files]
    expected = model.embed(same).features
    assert torch.equal(model.embed(np.stack(same)).features, expected)
    assert torch.equal(model.embed(torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2)).features, expected)
    for one in (same[0], Image.fromarray(same[0]), torch.from_numpy(same[0]).permute(2, 0, 1)):
        torch.testing.assert_close(model.embed(one).features, expected[:1])
    torch.testing.assert_close(model.embed(files[2]).features[0], model.embed(files)[2])


def test_grey_and_bands(tmp_path: Path, model: unlabeled.Model) -> None:
    random = np.random.default_rng(1)
    grey = random.integers(256, size=(40, 50), dtype=np.uint8)
    expected = model.embed(np.repeat(grey[:, :, None], 3, 2)).features
    for one in (grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(model.embed(one).features, expected)
    how = {"mean": (0.5,) * 6, "std": (0.25,) * 6, "value_range": (-10.0, 30.0)}
    wide = unlabeled.load(export(tmp_path / "six", channels=6, **how), device="cpu")
    bands = random.normal(10, 8, size=(40, 40, 6)).astype(np.float32)
    np.save(tmp_path / "bands.npy", bands)
    assert torch.equal(wide.embed(bands).features, wide.embed(tmp_path / "bands.npy").features)
    with pytest.raises(unlabeled.UserError, match=r"\[40, 40, 3\], expected \[H, W, C\] with C 6"):
        wide.embed(bands[:, :, :3])


def test_prepared_images_are_what_the_encoder_sees(model: unlabeled.Model, files: list[str]) -> None:
    pixels = model.preprocess(files)
    assert pixels.shape == (len(files), 3, 32, 32) and pixels.dtype == torch.float32
    with torch.no_grad():
        tokens = model.encoder(pixels)
    assert torch.equal(model.embed(files, pool="cls").features, tokens.prefix[:, 0])
    assert torch.equal(model.embed(files, pool="mean_max").features[:, 16:], tokens.patches.amax(1))


def test_a_classifier_predicts_as_timm(tmp_path: Path, home: Path, files: list[str]) -> None:
    classifier = unlabeled.load(export(tmp_path / "export", CLASSES), device="cpu")
    assert classifier.classes == CLASSES
    found = classifier.predict(files)
    network = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        logits = network(classifier.preprocess(files))
    torch.testing.assert_close(found.probabilities, logits.softmax(1))
    assert found.names == [CLASSES[i] for i in logits.argmax(1)]
    assert found.probabilities.std(0).min() > 5e-4  # images differ, by more than the tolerance
    with torch.no_grad():
        before = network.forward_head(network.forward_features(classifier.preprocess(files)), pre_logits=True)
    torch.testing.assert_close(classifier.embed(files).features, before)
    with pytest.raises(unlabeled.UserError, match="holds an encoder, which knows no classes"):
        unlabeled.load(home / "export").predict(files)


def test_modes_and_handlers_stay(model: unlabeled.Model, files: list[str], home: Path) -> None:
    model.encoder.train()
    before = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGINT)]
    expected = model.embed(files, batch_size=BATCH, workers=1).features
    assert model.encoder.training and [signal.getsignal(n) for n in (17, 14, 2)] == before
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(model.embed(files, batch_size=BATCH, workers=1).features))
    thread.start()
    thread.join(60)
    assert torch.equal(found[0], expected)
    model.encoder.eval()


GREY = np.zeros((8, 8), np.uint8)
WRONG: dict[str, tuple[Any, str]] = {
    "none": ([], "no image was given: found an empty list"),
    "no batch": (np.zeros((0, 8, 8, 3), np.uint8), "no image was given"),
    "numbers": ([1, 2], r"images\[0\] is a int; expected a Pillow image"),
    "nothing": (None, r"images\[0\] is a NoneType"),
    "mixed": ([GREY, Image.fromarray(GREY)], r"images\[0\] is an array and images\[1\] is a Pillow image"),
    "normalised": ([GREY, GREY - 1.5], r"images\[1\]: floats from -1.5 to -1.5, expected 0 to 1"),
    "up to 255": (np.full((8, 8, 3), 200.0), "floats from 200 to 200, expected 0 to 1"),
    "not a number": (np.full((8, 8, 3), np.nan), "floats from nan to nan"),
    "whole": (np.ones((8, 8, 3), np.int64), "numbers of int64, expected uint8"),
    "transparent": (np.ones((8, 8, 4), np.uint8), r"an array \[8, 8, 4\], expected \[H, W, C\] with C 1 or 3"),
    "bands first": (np.ones((3, 8, 8), np.uint8), r"pass image.transpose\(1, 2, 0\)"),
    "bands last": (torch.ones(8, 8, 3, dtype=torch.uint8), r"a tensor \[8, 8, 3\], expected \[C, H, W\].*permute"),
    "empty": (np.ones((0, 8, 3), np.uint8), r"an array \[0, 8, 3\].*not empty"),
    "five axes": (np.ones((2, 2, 8, 8, 3), np.uint8), r"an array \[2, 2, 8, 8, 3\], expected"),
    "no file": ("nowhere.jpg", r"images\[0\] \(nowhere.jpg\): cannot be read: No such file"),
    "no folder": ("nowhere", "nowhere"),
    "a folder in a list": (["tests"], r"images\[0\] \(tests\): cannot be read: Is a directory"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_named(model: unlabeled.Model, what: str) -> None:
    images, said = WRONG[what]
    with pytest.raises(unlabeled.UserError, match=said):
        model.embed(images)


def test_a_damaged_file_among_others_is_named(model: unlabeled.Model, home: Path, files: list[str]) -> None:
    broken = str(next((home / "pictures").rglob("04.png")))
    for batch_size in (2, 256):
        with pytest.raises(unlabeled.UserError, match=rf"images\[3\] \({broken}\): not a picture"):
            model.embed([*files[:3], broken, *files[3:]], batch_size=batch_size)


def test_wrong_arguments_are_named(model: unlabeled.Model, home: Path, files: list[str]) -> None:
    for arguments, said in (
        ({"pool": "average"}, "pool='average': expected one of cls, mean"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"workers": -1}, "workers=-1: expected at least 0"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used"),
    ):
        with pytest.raises(unlabeled.UserError, match=said):
            model.embed(files, **arguments)  # type: ignore[arg-type]
    with pytest.raises(unlabeled.UserError, match="crop_pct=2: expected"):
        unlabeled.load(home / "export", crop_pct=2)
    with pytest.raises(unlabeled.UserError, match="is not an export"):
        unlabeled.load(home)


def test_the_names_are_those_that_type_checkers_see() -> None:
    stub = Path(str(unlabeled.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    for name in set(unlabeled.__all__) - {"__version__"}:
        assert getattr(unlabeled, name) is not None and f" {name} as {name}\n" in stub
    assert repr(unlabeled.Model) and set(dir(unlabeled)) >= set(unlabeled.__all__)
