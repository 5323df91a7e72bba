"""Every picture becomes upright uint8 RGB by the documented rule, or a BadSample."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from encoded import UPRIGHT, encode
from PIL import Image, ImageOps
from torch import Tensor

from unlabeled.data.decoding.decode import decode
from unlabeled.errors import BadSample

CAP = 89_478_485
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_bit_png(side: int, idat: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A black 1-bit PNG, genuinely decodable: 12 kB for a side of 10,000."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(side))
    return one_bit_png(side, rows + packer.flush())


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_makes_of_it(mode: str, progressive: bool) -> None:
    data = encode(PICTURE.convert(mode), "JPEG", progressive=progressive)
    assert torch.equal(decode(data, CAP), tensor(Image.open(io.BytesIO(data)).convert("RGB")))


def test_ycck_jpeg_is_what_pillow_makes_of_it() -> None:
    data = bytearray(encode(PICTURE.convert("CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2  # the colour transform of the Adobe marker: YCCK
    assert torch.equal(decode(bytes(data), CAP), tensor(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    pixels = decode(encode(PICTURE, format, **({"lossless": True} if format == "WEBP" else {})), CAP)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, tensor(PICTURE))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        pixels = decode(encode(frames[0], format, save_all=True, append_images=frames[1:], **options), CAP)
        assert torch.equal(pixels, tensor(frames[0])), format


def test_alpha_is_dropped() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode(encode(clear, "PNG"), CAP)[:, 0, 0].tolist() == [10, 20, 30]
    assert decode(encode(Image.new("LA", (4, 4), (77, 0)), "PNG"), CAP)[:, 0, 0].tolist() == [77, 77, 77]

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encode(palette, "PNG", transparency=1), CAP)[:, 0, 0].tolist() == [10, 20, 30]
    assert decode(encode(palette, "PNG", transparency=b"\0\0"), CAP)[:, 0, 0].tolist() == [10, 20, 30]


def test_one_bit_is_black_and_white() -> None:
    stripes = Image.fromarray(np.array([[0, 255, 0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encode(stripes, "PNG"), CAP)[0].tolist() == [[0, 255, 0, 255]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    values[0, :4] = 0, 128, 129, 65535
    expected = [[round(int(v) / 257) for v in row] for row in values]
    pgm = b"P5 30 20 65535\n" + values.astype(">u2").tobytes()
    for data in (encode(Image.fromarray(values), "PNG"), encode(Image.fromarray(values), "TIFF"), pgm):
        assert decode(data, CAP).tolist() == [expected] * 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_numbers_are_stretched_from_minimum_to_maximum(dtype: type) -> None:
    values: np.ndarray = np.array([[-100_000, 0, 50_000, 100_000]], dtype=dtype)
    assert decode(encode(Image.fromarray(values), "TIFF"), CAP)[0].tolist() == [[0, 128, 191, 255]]
    assert decode(encode(Image.fromarray(values * 0 - 7), "TIFF"), CAP)[0].tolist() == [[0, 0, 0, 0]]


def test_floats_that_are_not_finite_are_bad() -> None:
    with pytest.raises(BadSample, match="NaN or infinite"):
        decode(encode(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF"), CAP)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    stored = decode(encode(PICTURE, format, **options), CAP).permute(1, 2, 0).numpy()
    pixels = decode(encode(PICTURE, format, exif=exif, **options), CAP)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), UPRIGHT[orientation](stored))


def test_broken_exif_does_not_cost_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert torch.equal(decode(encode(PICTURE, "PNG"), CAP), tensor(PICTURE))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_bad(mode: str, progressive: bool) -> None:
    data = encode(PICTURE.convert(mode), "JPEG", progressive=progressive)
    for length in range(len(data)):
        with pytest.raises(BadSample):
            decode(data[:length], CAP)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_half_a_file_is_bad(format: str) -> None:
    data = encode(PICTURE, format)
    with pytest.raises(BadSample):
        decode(data[: len(data) // 2], CAP)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture\n" * 99, "not a picture"),
        (EPS, "not a picture"),
        (bytes(999), "not a picture"),
    ],
)
def test_what_is_no_picture_is_bad(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason) as bad:
        decode(data, CAP, "a/b.jpg")
    assert bad.value.key == "a/b.jpg"


def test_pillow_would_have_opened_the_eps() -> None:
    assert Image.open(io.BytesIO(EPS)).format == "EPS"


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_small_file_of_many_pixels_is_refused(side: int, recwarn: pytest.WarningsRecorder) -> None:
    data = bomb(side)
    assert len(data) < 49_000
    with pytest.raises(BadSample, match=r"10000x10000 pixels are more|exceeds limit"):
        decode(data, CAP)
    assert not recwarn.list


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_the_cap_counts_pixels_of_every_format(format: str) -> None:
    data = encode(PICTURE, format)
    assert decode(data, 40 * 30).shape == (3, 30, 40)
    with pytest.raises(BadSample, match="40x30 pixels are more than the 1,199 allowed"):
        decode(data, 40 * 30 - 1)


def test_a_jpeg_that_claims_to_be_huge_is_refused_by_its_header() -> None:
    data = bytearray(encode(PICTURE, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 64_000)
    with pytest.raises(BadSample, match="64000x65000 pixels"):
        decode(bytes(data), CAP)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
@pytest.mark.parametrize("at_end", [False, True])
def test_compressed_text_that_explodes_is_refused(kind: bytes, at_end: bool) -> None:
    data = encode(PICTURE, "PNG")
    cut = len(data) - 12 if at_end else 33  # before IEND, after IHDR
    exploding = chunk(kind, b"x\0\0" + zlib.compress(bytes(64 << 20), 9))
    with pytest.raises(BadSample, match="too large"):
        decode(data[:cut] + exploding + data[cut:], CAP)


def test_any_damage_ends_in_pixels_or_a_bad_sample() -> None:
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        data = encode(PICTURE, format)
        for _ in range(100):
            damaged = bytearray(data)
            for at in RNG.integers(0, len(data), 3):
                damaged[at] = RNG.integers(0, 256)
            with contextlib.suppress(BadSample):
                assert decode(bytes(damaged), 1_000_000).dtype == torch.uint8
