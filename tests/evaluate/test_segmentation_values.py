"""What masks hold is counted, said, and refused where it is not clear; a loop over pixels says the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pydantic import ValidationError

from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import UserError
from unlabeled.evaluate.evaluation import Evaluation
from unlabeled.evaluate.protocols.segmentation import Config as Segmentation
from unlabeled.evaluate.segmentation_decoding import decode_mask
from unlabeled.evaluate.segmentation_values import Coding, count, name_of, number_of, together
from unlabeled.evaluate.splits import Splits


def write(folder: Path, make: Any, ending: str = "png", **how: Any) -> Splits:
    """Six pictures with the masks that `make(i)` draws."""
    for split in ("train", "val"):
        for name in (split, f"{split}_masks"):
            (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 30)).save(folder / split / f"{i}.png")
            make(i).save(folder / f"{split}_masks" / f"{i}.{ending}", **how)
    return Splits(
        Evaluation(), Opened(Files(path=str(folder), train="train", val="val")), torch.device("cpu"), labels=False
    )


def stripes(*values: int) -> Any:
    """Masks of vertical stripes of these values."""
    columns = np.resize(np.repeat(values, 8), 40)
    return lambda i: Image.fromarray(np.broadcast_to(columns, (30, 40)).astype(np.uint8))


def disc(i: int) -> Image.Image:
    """A white disc on black, its edges smoothed."""
    y, x = np.mgrid[:30, :40]
    inside = ((x - 15 - i) ** 2 + (y - 14) ** 2 < 90).astype(np.uint8) * 255
    return Image.fromarray(inside).filter(ImageFilter.GaussianBlur(1))


def coloured(i: int) -> Image.Image:
    image = Image.new("RGB", (40, 30), "#000000")
    image.paste("#804000", (5 + i, 5, 30, 20))
    return image


def meaning(splits: Splits, **settings: Any) -> Coding:
    config = Segmentation(**settings)
    config.check(splits)
    found: Coding = splits.known[config]
    return found


@pytest.mark.parametrize(
    ("values", "settings", "names", "ignore"),
    [
        ((0, 1, 2), {}, ["0", "1", "2"], None),
        ((0, 1, 255), {}, ["0", "1"], 255),
        ((0, 128, 255), {"values": (0, 128, 255)}, ["0", "128", "255"], None),
        ((0, 128, 255), {"values": (255, 0), "ignore": 128}, ["255", "0"], 128),
        ((0, 255), {"values": (0, 255)}, ["0", "255"], None),
        ((0, 2, 255), {"classes": 3}, ["0", "1", "2"], 255),
        ((1, 2, 3), {"values": (1, 2, 3)}, ["1", "2", "3"], None),
        ((0, 1, 2), {"ignore": 2}, ["0", "1"], 2),
        ((0, 40, 200), {"threshold": 100}, ["below 100", "100 and more"], None),
        ((0, 40, 200), {"threshold": 100, "ignore": 40}, ["below 100", "100 and more"], 40),
    ],
)
def test_values_become_classes(
    values: tuple[int, ...],
    settings: dict[str, Any],
    names: list[str],
    ignore: int | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coding = meaning(write(tmp_path, stripes(*values)), **settings)
    assert (list(coding.names), coding.ignore) == (names, ignore)
    mask = np.resize(values, (3, 4))
    for (row, column), value in np.ndenumerate(mask):
        if value == ignore:
            wanted = -1
        elif "threshold" in settings:
            wanted = int(value >= settings["threshold"])
        else:
            wanted = names.index(str(value))
        assert coding(mask)[row, column] == wanted
    said = capsys.readouterr().err
    shares = [100 * np.mean(np.resize(np.repeat(values, 8), 40) == value) for value in values]
    first = f"masks of train: {values[0]} {shares[0]:.1f} %{' (unlabelled)' if values[0] == ignore else ''}, "
    assert said.startswith(first) and "masks of val: " in said


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ((0, 128, 255), {}, r"0 40.0 %, 128 40.0 %, 255 20.0 %.*segmentation.values=\[0,128,255\]"),
        ((0, 255), {}, r"segmentation.values=\[0,255\]"),
        ((1, 2, 3), {}, r"values=\[1,2,3\].*segmentation.classes=4"),
        ((0, 1, 3, 255), {}, r"values=\[0,1,3,255\]"),
        ((0, 2, 255), {"ignore": 255}, r"255 is segmentation.ignore.*values=\[0,2\]"),
        ((0, 1, 2), {"ignore": 0}, r"values=\[1,2\]"),
        ((0, 128, 255), {"values": (0, 128)}, r"train_masks/0.png holds 255; expected one of 0, 128"),
        ((0, 1, 128, 255), {"classes": 2}, r"holds 128; expected classes 0 to 1, or 255"),
        ((0, 255), {"classes": 2}, r"two classes in the masks of train.*found \['0'\].*255 counts as unlabelled"),
        ((7,), {}, "With one value there is nothing to tell apart"),
        ((0, 40), {"threshold": 100}, r"found \['below 100'\]"),
    ],
)
def test_nothing_is_guessed(values: tuple[int, ...], settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        meaning(write(tmp_path, stripes(*values)), **settings)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp"])
def test_soft_edges_ask_for_a_threshold(ending: str, tmp_path: Path) -> None:
    splits = write(tmp_path, disc, ending)
    with pytest.raises(UserError, match=r"segmentation\.threshold=128"):
        meaning(splits)
    assert len(meaning(splits, threshold=128).names) == 2


def test_all_256_values_are_no_classes_unless_that_is_said(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.resize(np.arange(256), (30, 40)).astype(np.uint8))
    splits = write(tmp_path, lambda _: ramp)
    with pytest.raises(UserError, match=r"256 values from 0 to 255.*segmentation\.threshold=128.*classes=256"):
        meaning(splits)
    assert len(meaning(splits, classes=256).names) == 256


def test_class_numbers_in_a_jpeg_are_not_believed(tmp_path: Path) -> None:
    # flat: the JPEG happens to keep them
    with pytest.raises(UserError, match="is a JPEG, which changes values"):
        meaning(write(tmp_path, stripes(0, 1), "jpg", quality=100))


def test_colours_are_listed_to_be_pasted(tmp_path: Path) -> None:
    splits = write(tmp_path, coloured)
    with pytest.raises(UserError, match=r'segmentation.values=\[0,"#804000"\]'):
        meaning(splits)
    coding = meaning(splits, values=(0, "#804000"))
    masks = decode_mask((tmp_path / "train_masks" / "0.png").read_bytes())
    pixels = np.array(coloured(0))
    for row, column in ((0, 0), (10, 10), (25, 35)):
        assert coding(masks)[row, column] == int(pixels[row, column].any())
    with pytest.raises(UserError, match=r"holds the colour #804000"):
        meaning(splits, threshold=10)
    assert number_of("#808080") == 128 and name_of(number_of("#0080ff")) == "#0080ff"


def test_palettes_that_differ_are_not_one_set_of_classes(tmp_path: Path) -> None:
    def indexed(colours: tuple[str, str]) -> Image.Image:
        image = Image.new("P", (40, 30), 0)
        image.putpalette(b"".join(bytes.fromhex(colour) for colour in colours))
        image.paste(1, (5, 5, 30, 20))
        return image

    same = write(tmp_path / "same", lambda _: indexed(("000000", "ff0000")))
    assert meaning(same).names == ("0", "1")
    differ = write(tmp_path / "differ", lambda i: indexed(("000000", "00ff00" if i == 2 else "ff0000")))
    with pytest.raises(UserError, match=r"value 1 is #ff0000 in .*0.png and #00ff00 in .*2.png: palettes differ"):
        meaning(differ)


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def test_every_kind_of_file_gives_the_values_it_was_made_of() -> None:
    values = np.random.default_rng(0).integers(0, 7, (9, 11))
    grey = Image.fromarray(values.astype(np.uint8))
    palette = Image.fromarray(values.astype(np.uint8), mode="P")
    palette.putpalette(list(range(255, 234, -1)))
    npy = io.BytesIO()
    np.save(npy, values.astype(np.int64))
    files = {
        "grey": encoded(grey),
        "grey saved as RGB": encoded(grey.convert("RGB")),
        "with alpha": encoded(grey.convert("RGBA")),
        "palette": encoded(palette),
        "gif": encoded(palette, "GIF"),
        "tiff": encoded(grey, "TIFF", compression="tiff_lzw"),
        "bmp": encoded(grey, "BMP"),
        "16 bits": encoded(Image.fromarray(values.astype(np.uint16))),
        "npy": npy.getvalue(),
    }
    for kind, data in files.items():
        assert np.array_equal(decode_mask(data), values), kind
    npy = io.BytesIO()
    np.save(npy, values > 0)
    assert np.array_equal(decode_mask(npy.getvalue()), values > 0)


def test_what_has_no_one_value_per_pixel_is_refused() -> None:
    random = np.random.default_rng(0)
    alpha = Image.fromarray(random.integers(0, 255, (4, 5, 4), dtype=np.uint8))
    pages = [Image.new("L", (4, 4), i) for i in range(2)]
    npy = io.BytesIO()
    np.save(npy, random.random((4, 4)))
    for data, message in (
        (encoded(alpha), "alpha channel that varies"),
        (encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "2 pages"),
        (encoded(Image.fromarray(random.random((4, 4)).astype(np.float32)), "TIFF"), "float32"),
        (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "mode CMYK"),
        (npy.getvalue(), "float64"),
        (encoded(Image.new("RGB", (4, 4)), "WEBP"), "no PNG, TIFF, BMP, GIF, JPEG or .npy"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_mask(data)


def test_counts_against_a_loop() -> None:
    random = np.random.default_rng(1)
    masks = [(f"{i}.png", random.integers(-1, 4, (5, 6)).astype(np.int32)) for i in range(4)]
    wanted: dict[int, int] = {}
    for _, mask in masks:
        for value in mask.flatten().tolist():
            wanted[value] = wanted.get(value, 0) + 1
    for found in (count(masks), together(map(count, (masks[:1], masks[1:])))):
        assert {value: held.pixels for value, held in found.items()} == dict(sorted(wanted.items()))
        assert found[-1].first == next(name for name, mask in masks if (mask == -1).any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": (0, 1), "threshold": 3}, "values and threshold are different ways"),
        ({"values": (0, 1, 0)}, "0 stands in the list twice"),
        ({"values": (0, "#000000")}, "stands in the list twice"),
        ({"values": (0, 255), "ignore": 255}, "255 is in values"),
        ({"values": (0, "red")}, "'red' is no value of a mask"),
        ({"values": (0, 10**30)}, "is no value of a mask; expected a number of 16 bits"),
        ({"values": (0, "#zzzzzz")}, "'#zzzzzz' is no value of a mask"),
        ({"ignore": "white"}, "'white' is no value of a mask"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Segmentation(**settings)
