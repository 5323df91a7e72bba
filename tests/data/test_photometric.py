"""Colours: against torchvision and Pillow crop by crop, on the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pydantic import ValidationError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as V1
from torchvision.transforms.v2 import functional as V2

from unlabeled.data.batch.loader import Normalize, ViewDataset, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import Sample, collate
from unlabeled.data.source import Source
from unlabeled.data.view.percrop import Blurs, recolour_and_normalize, turn_hue_
from unlabeled.data.view.photometric import DRAWS as UNIFORMS
from unlabeled.data.view.photometric import Photometric, blur, box_radius, jitter, luminance, solarize, turn_hue
from unlabeled.data.view.recolour import recolour
from unlabeled.data.view.views import View

CPU = torch.device("cpu")
ORDERS = list(permutations(range(4)))
DRAWS = 4000
EVERYTHING = View(
    size=16, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=0.5, solarize=0.2, interpolation="bilinear"
)


def pictures(n: int, height: int = 12, width: int = 15) -> Tensor:
    """uint8 [n, 3, H, W]: noise, with patches of black, white and grey, where hues do not exist."""
    pixels = torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    pixels[:, :, 0, :3], pixels[:, :, 1, :3], pixels[:, :, 2, :3] = 0, 255, 128
    return pixels


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def torchvision_jitter(picture: Tensor, factors: list[float], order: tuple[int, ...], functional: Any) -> Tensor:
    adjust = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    for operation in order:
        picture = [*adjust, functional.adjust_hue][operation](picture, factors[operation])
    return picture


@pytest.mark.parametrize("functional", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.2, 0.1), (1.0, 1.0, 1.0, 0.5)])
def test_jitter_is_torchvisions_in_all_orders_at_once(functional: Any, strength: tuple[float, ...]) -> None:
    pixels = pictures(24) / 255
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]) + torch.tensor(strength) * (2 * uniform(24, 4) - 1)
    found = jitter(pixels, factors, torch.tensor(ORDERS))
    for picture, mine, factor, order in zip(pixels, found, factors.tolist(), ORDERS, strict=True):
        expected = torchvision_jitter(picture, factor, order, functional)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def test_a_jitter_of_nothing_changes_nothing() -> None:
    pixels = pictures(24) / 255
    assert torch.equal(jitter(pixels, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(24, 4), torch.tensor(ORDERS)), pixels)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 1e-3, 1 / 6, 0.25, 0.5])
def test_hue_is_torchvisions_for_every_kind_of_colour(turn: float) -> None:
    levels = torch.tensor([0.0, 0.2, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 8, 8)
    expected = V1.adjust_hue(colours, turn)
    torch.testing.assert_close(turn_hue(colours, torch.tensor(turn)), expected, rtol=0, atol=1e-5)
    levels = colours * 255
    turn_hue_(levels, turn)
    torch.testing.assert_close(levels / 255, expected, rtol=0, atol=1e-5)


def test_grey_is_torchvisions() -> None:
    pixels = pictures(4) / 255
    torch.testing.assert_close(luminance(pixels), V1.rgb_to_grayscale(pixels), rtol=0, atol=1e-6)


def test_solarize_is_torchvisions_on_every_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)
    found = solarize(levels / 255) * 255
    torch.testing.assert_close(found, V1.solarize(levels, 128).float(), rtol=0, atol=1e-4)
    between = uniform(3, 8, 8)
    assert torch.equal(solarize(between), V1.solarize(between, 0.5))


@pytest.mark.parametrize("kernel", [3, 9])
def test_blur_with_a_kernel_is_torchvisions(kernel: int) -> None:
    pixels, sigmas = pictures(6) / 255, torch.tensor([0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
    found = blur(pixels, sigmas, kernel)
    for picture, mine, sigma in zip(pixels, found, sigmas.tolist(), strict=True):
        torch.testing.assert_close(mine, V1.gaussian_blur(picture, kernel, sigma), rtol=0, atol=1e-5)


def box_blurs(picture: np.ndarray, sigma: float, rounded: bool) -> np.ndarray:
    """Three boxes along the width, three along the height, of [3, H, W] in [0, 255]; as naive as can be."""
    radius = float(box_radius(torch.tensor(sigma, dtype=torch.float64)))
    reach, part = int(radius) + 1, radius - int(radius)
    weights = np.array([part, *[1.0] * (2 * reach - 1), part]) / (2 * radius + 1)
    for axis in (2, 2, 2, 1, 1, 1):
        padding = [(reach, reach) if each == axis else (0, 0) for each in range(3)]
        padded, side = np.pad(picture, padding, mode="edge"), picture.shape[axis]
        shifted = [padded.take(range(tap, tap + side), axis) for tap in range(len(weights))]
        picture = sum(weight * each for weight, each in zip(weights, shifted, strict=True))
        picture = np.floor(picture + 0.5) if rounded else picture
    return picture


@pytest.mark.parametrize("sigma", [0.17, 0.35, 0.8, 1.37, 1.9, 3.3])
def test_blur_by_radius_is_pillows_without_its_rounding(sigma: float) -> None:
    pixels = pictures(1, 40, 33)[0]
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma))
    assert np.array_equal(box_blurs(pixels.double().numpy(), sigma, rounded=True), np.array(pillow).transpose(2, 0, 1))
    exact = torch.from_numpy(box_blurs(pixels.double().numpy() / 255, sigma, rounded=False)).float()
    found = blur(pixels / 255, torch.tensor(sigma))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    assert (found * 255 - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)).abs().max() < 3


@pytest.mark.parametrize("kernel", [None, 9])
def test_blur_leaves_alone_what_is_flat_or_not_blurred(kernel: int | None) -> None:
    sigmas = torch.tensor([0.0, 0.1, 2.0])
    torch.testing.assert_close(blur(torch.full((3, 3, 9, 7), 0.7), sigmas, kernel), torch.full((3, 3, 9, 7), 0.7))
    noise = uniform(3, 3, 9, 7)
    assert torch.equal(blur(noise, sigmas, kernel)[0], noise[0])


def drawn(view: View, n: int = DRAWS) -> Photometric:
    return view.colours(np.random.default_rng(0).random((n, UNIFORMS)))


def test_draws_have_the_ranges_and_frequencies_asked_for() -> None:
    colours: Any = drawn(EVERYTHING)
    jittered = (colours.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(-1)
    happened = {0.8: jittered, 0.2: colours.grayscale, 0.5: colours.blur > 0}
    for probability, flags in [*happened.items(), (0.2, colours.solarize)]:
        deviation = (flags.float().mean() - probability).abs() / (probability * (1 - probability) / DRAWS) ** 0.5
        assert deviation < 4.5
    # uniform, from end to end
    for values, low, high in [
        *zip(colours.jitter[jittered].T, (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), strict=True),
        (colours.blur[colours.blur > 0], 0.1, 2.0),
    ]:
        steps = torch.linspace(low, high, len(values))
        assert (values.sort().values - steps).abs().max() < 2.2 * (high - low) / len(values) ** 0.5
    # all orders equally often
    counts = np.unique(colours.order.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - DRAWS / 24) ** 2 / (DRAWS / 24)).sum() < 60


def test_what_happens_to_a_crop_is_drawn_independently() -> None:
    colours: Any = drawn(EVERYTHING)
    jittered = (colours.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(-1)
    flags = torch.stack([jittered, colours.grayscale, colours.blur > 0, colours.solarize, colours.order[:, 0] == 0])
    between = torch.corrcoef(flags.double()) - torch.eye(len(flags))
    assert between.abs().max() < 4.5 / DRAWS**0.5


def test_strong_jitter_never_asks_for_a_negative_factor() -> None:
    colours: Any = drawn(View(jitter=(2.0, 2.0, 2.0, 0.5), jitter_p=1.0))
    assert colours.jitter[:, :3].min() >= 0 and 2.9 < colours.jitter[:, :3].max() <= 3
    assert -0.5 <= colours.jitter[:, 3].min() < -0.49 and 0.49 < colours.jitter[:, 3].max() <= 0.5


@pytest.mark.parametrize("view", [EVERYTHING, View(blur=1.0), View(solarize=0.1)])
def test_the_next_crop_is_the_same_whatever_the_colours(view: View) -> None:
    picture, plain = pictures(1, 40, 50)[0], View(size=16, interpolation="bilinear")
    view = view.model_copy(update={"size": 16, "count": 2, "interpolation": "bilinear"})
    rngs = [np.random.default_rng(7) for _ in range(2)]
    both = view.sample(picture, rngs[0], 8).pixels
    for crop in both:
        assert torch.equal(plain.sample(picture, rngs[1], 8).pixels[0], crop)
        rngs[1].random(UNIFORMS)


def one_by_one(pixels: Tensor, colours: Photometric) -> Tensor:
    """`recolour`, as it is done on a CPU."""
    levels = (pixels * 255).round().to(torch.uint8)
    channels = pixels.shape[1]
    return recolour_and_normalize(levels, colours, torch.full((channels, 1, 1), 1 / 255), torch.zeros(channels, 1, 1))


@pytest.mark.parametrize("how", [recolour, one_by_one])
def test_the_chain_is_jitter_grey_blur_solarise(how: Callable[[Tensor, Photometric], Tensor]) -> None:
    pixels, colours = pictures(200, 16, 16) / 255, drawn(EVERYTHING, 200)
    found = how(pixels, colours)
    for i, (picture, mine) in enumerate(zip(pixels, found, strict=True)):
        one: Any = colours.map(lambda tensor, i=i: tensor[i])  # type: ignore[misc]
        picture = torchvision_jitter(picture, one.jitter.tolist(), tuple(one.order.tolist()), V1)
        picture = V1.rgb_to_grayscale(picture, 3) if one.grayscale else picture
        picture = blur(picture, one.blur)
        # a value that solarising would send to either side is left out
        clear = (picture - 0.5).abs() > 1e-5
        picture = V1.solarize(picture, 0.5) if one.solarize else picture
        torch.testing.assert_close(mine[clear], picture[clear], rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(16, 16), (96, 96), (131, 160), (300, 40)])
@pytest.mark.parametrize("kernel", [None, 23])
def test_one_by_one_is_all_at_once(size: tuple[int, int], kernel: int | None) -> None:
    strong = {"jitter": (0.8, 0.8, 0.8, 0.5), "jitter_p": 0.9, "blur_radius": (0.1, 8.0), "blur_kernel": kernel}
    colours = drawn(EVERYTHING.model_copy(update=strong), 24)
    pixels = pictures(24, *size) / 255
    torch.testing.assert_close(one_by_one(pixels, colours), recolour(pixels, colours), rtol=0, atol=5e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_by_hand(channels: int) -> None:
    view = EVERYTHING.model_copy(update={"jitter": (0.4, 0.4, 0, 0), "grayscale": 0.0})
    colours = drawn(view, 64)
    assert colours.jitter is not None and colours.order is not None
    assert colours.blur is not None and colours.solarize is not None
    noise = torch.randint(0, 256, (64, channels, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = noise / 255
    found = recolour(pixels, colours)
    for i, picture in enumerate(pixels):
        for operation in colours.order[i].tolist():
            factor = colours.jitter[i, operation]
            if operation == 0:
                picture = (picture * factor).clamp(0, 1)
            if operation == 1:
                picture = (picture.mean() + factor * (picture - picture.mean())).clamp(0, 1)
        picture = blur(picture, colours.blur[i])
        clear = (picture - 0.5).abs() > 1e-5
        picture = torch.where(picture >= 0.5, 1 - picture, picture) if colours.solarize[i] else picture
        torch.testing.assert_close(found[i][clear], picture[clear], rtol=0, atol=5e-6)
    torch.testing.assert_close(one_by_one(pixels, colours), found, rtol=0, atol=5e-6)


def test_one_by_one_is_all_at_once_for_every_order_and_choice() -> None:
    """Every order of jitter with every choice of blur, grey, solarise and a hue that is turned or not."""
    cases = list(product(ORDERS, (0.0, 1.9), (False, True), (False, True), (0.0, -0.1, 0.4)))
    factors = 0.4 + 1.2 * uniform(len(cases), 4)
    orders, sigmas, grey, solarized, turns = (list(column) for column in zip(*cases, strict=True))
    factors[:, 3] = torch.tensor(turns)
    colours = Photometric(
        factors, torch.tensor(orders), torch.tensor(grey), torch.tensor(sigmas), torch.tensor(solarized)
    )
    pixels = pictures(len(cases)) / 255
    found, expected = one_by_one(pixels, colours), recolour(pixels, colours)
    # solarising sends what lies at one half to either side, to the same value: 1 - x is x there
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_what_is_not_drawn_changes_nothing_one_by_one() -> None:
    """Not even the last digit, whatever else was done to the crop."""
    pixels, factors = pictures(24), torch.tensor([0.7, 1.0, 1.0, 0.0]).expand(24, 4)
    no, normalize = torch.zeros(24), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU)
    colours = Photometric(factors, torch.tensor(ORDERS), no.bool(), no, no.bool())
    found = recolour_and_normalize(pixels, colours, normalize.scale, normalize.shift)
    assert torch.equal(found, normalize(pixels.float() * factors[0, 0].item()))


@pytest.mark.parametrize("side", [1, 7, 15, 16, 17, 33, 47, 48, 49, 63, 64, 65, 79, 97])
@pytest.mark.parametrize(("kernel", "widest"), [(None, 2.0), (None, 6.5), (None, 9.0), (1 + 2 * 16, 4.0)])
def test_blurs_in_blocks_are_blurs_of_any_side(side: int, kernel: int | None, widest: float) -> None:
    if kernel is not None and kernel // 2 >= side:
        pytest.skip("such a kernel is refused")
    sigmas, crops = torch.tensor([0.0, widest, 0.4]), uniform(3, 3, side, 40)
    blurs = Blurs(Photometric(None, None, None, sigmas, None, kernel), (3, side, 40))
    expected = blur(crops, sigmas, kernel)
    for i, (crop, blurred) in enumerate(zip(crops, expected, strict=True)):
        torch.testing.assert_close(blurs.apply(crop, i), blurred, rtol=0, atol=2e-6)
        torch.testing.assert_close(blurs.apply(crop[:1], i), blurred[:1], rtol=0, atol=2e-6)


class Pictures(Source):
    """A source of a few pictures."""

    classes: tuple[str, ...] = ()
    labels = np.full(8, -1)

    def __len__(self) -> int:
        return 8

    def image(self, i: int) -> Tensor:
        return pictures(8, 40, 50)[i]

    def key(self, i: int) -> str:
        return str(i)

    def fingerprint(self) -> str:
        return "pictures"


VIEWS = (EVERYTHING.model_copy(update={"count": 2}), View(size=16), View(size=16, blur=1.0, blur_kernel=9))


def batches(workers: int, size: int) -> list[Any]:
    positions = [Position(1, i) for i in range(8)]
    dataset = ViewDataset(Pictures(), VIEWS, patch=8, seed=3)
    split = [positions[i : i + size] for i in range(0, 8, size)]
    raw = make_loader(dataset, split, workers=workers, device=CPU, timeout=60, collate=collate)
    return [to_device(each, CPU, Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU)) for each in raw]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_colours_are_the_same_in_any_worker_and_batch(workers: int, size: int) -> None:
    (whole,) = batches(0, 8)
    parts = batches(workers, size)
    for view in range(3):
        found = torch.cat([part.views[view].pixels for part in parts], dim=1)
        torch.testing.assert_close(found, whole.views[view].pixels, rtol=0, atol=1e-5)


def test_a_batch_on_the_device_is_coloured_then_normalised() -> None:
    dataset = ViewDataset(Pictures(), VIEWS, patch=8, seed=3)
    samples = [dataset[Position(1, i)] for i in range(8)]
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU)
    batch = to_device(collate(samples), CPU, normalize)
    for row, sample in enumerate(samples):
        for view, crops in zip(batch.views, sample.crops, strict=True):
            coloured = crops.pixels / 255
            coloured = coloured if crops.colours is None else recolour(coloured, crops.colours)
            torch.testing.assert_close(view.pixels[:, row], normalize(coloured * 255), rtol=0, atol=1e-5)
    assert torch.equal(batch.views[1].pixels[0, 5], normalize(samples[5].crops[1].pixels[0]))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kernel", [None, 9])
def test_colouring_never_waits_for_the_device(kernel: int | None, fused: bool) -> None:
    view = EVERYTHING.model_copy(update={"blur_kernel": kernel, "fused": fused})
    colours = drawn(view, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixels = torch.empty(4, 3, 16, 16, device="cuda")
        blurred = torch.empty(2, dtype=torch.int64, device="cuda")  # as the loader knows from the host
        found = recolour(pixels, colours.map(lambda tensor: torch.empty_like(tensor, device="cuda")), blurred)
    assert found.device.type == "cuda" and found.shape == (4, 3, 16, 16)


class Copies(TorchDispatchMode):
    """Type and size of every tensor that is copied to a device within; nothing may wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        assert func not in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and found.device.type == "cuda":
            self.copied.append((str(args[0].dtype), args[0].numel()))
        return found


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_but_the_collated_batch_is_copied_to_the_device(fused: bool) -> None:
    view = EVERYTHING.model_copy(update={"count": 3, "fused": fused})
    samples = [view.sample(picture, np.random.default_rng(i), 8) for i, picture in enumerate(pictures(4, 40, 50))]
    raw = collate([Sample([crops], 0, i, []) for i, crops in enumerate(samples)])
    (crops,) = raw.crops
    assert crops.colours is not None and crops.colours.blur is not None and crops.blurred is not None
    expected = [(i, c) for c in range(3) for i in range(4) if samples[i].colours.blur[c] > 0]  # type: ignore[union-attr, index]
    assert [divmod(int(at), 4)[::-1] for at in crops.blurred] == expected and len(expected) > 2
    device, own = torch.device("cuda"), (crops.pixels, crops.blurred, *crops.colours, raw.labels, raw.index)
    with FakeTensorMode(allow_non_fake_inputs=True):
        normalize = Normalize([0.5] * 3, [0.5] * 3, device)
        with Copies() as copies:
            assert to_device(raw, device, normalize).views[0].pixels.shape == (3, 4, 3, 16, 16)
    assert sorted(copies.copied) == sorted((str(t.dtype), t.numel()) for t in own if isinstance(t, Tensor))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "less than or equal to 0.5"),
        ({"jitter": (0.4, -0.4, 0.2, 0.1)}, "greater than or equal to 0"),
        ({"blur": 1.2}, "less than or equal to 1"),
        ({"blur_radius": (2.0, 0.1)}, r"expected \[low, high\], found \[2.0, 0.1\]"),
        ({"blur_kernel": 8}, "expected an odd number of taps, found 8. Use 9"),
    ],
)
def test_impossible_colours_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        View(**fields)


def test_a_kernel_wider_than_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="blur_kernel 33 is too wide for a crop of 16x16 pixels"):
        View(size=16, blur=1.0, blur_kernel=33).check(16)


def test_only_the_crops_that_are_named_are_blurred() -> None:
    colours = Photometric(None, None, None, torch.tensor([[0.0, 1.5, 0.0], [2.0, 0.0, 0.7]]), None)
    pixels = uniform(2, 3, 3, 12, 10)
    assert colours.blur is not None
    found = recolour(pixels, colours, colours.blur.flatten().nonzero().flatten())
    for place, sigma in np.ndenumerate(colours.blur.numpy()):
        expected = blur(pixels[place], torch.tensor(sigma)) if sigma else pixels[place]
        torch.testing.assert_close(found[place], expected, rtol=0, atol=1e-6)
