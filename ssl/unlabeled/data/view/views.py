"""Views: how crops are cut from an image. Geometry happens here in the worker; colour happens on the device."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from unlabeled.data.mask import ALONE, AnyMask, Place
from unlabeled.data.view import augment, cutting, photometric
from unlabeled.data.view.augment import Erased
from unlabeled.data.view.box import CROP_ATTEMPTS, Box, first_box, random_box
from unlabeled.data.view.cutting import Cut
from unlabeled.data.view.photometric import Photometric
from unlabeled.nn.patches import PatchMask
from unlabeled.randomness import Stream, stream

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Jitter = tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]]
Interpolation = Literal["bicubic", "bilinear"]
Side = Annotated[int, Field(ge=1)]
Size = Side | tuple[Side, Side]


class Crop(NamedTuple):
    """The random box and flip of one crop."""

    box: Box
    flip: bool


class Crops(NamedTuple):
    """One sample's crops of one view: pixels [count, C, H, W] uint8; all else with leading axis [count].

    Where they are still to be cut, `how` is not None, and `pixels` are rows [count, ROW] int64, see
    `unlabeled.data.view.cutting`.
    """

    pixels: Tensor
    mask: PatchMask | None
    colours: Photometric | None = None
    erased: Erased | None = None
    blurred: Tensor | None = None  # of a batch, see `Photometric.blurred`
    how: Cut | None = None


class View(BaseModel, frozen=True, extra="forbid"):
    """Random resized crops of one size (torchvision's RandomResizedCrop), flipped at random. When asked to, RandAugment
    comes next, then colours change in this order: jitter, grey, blur, solarise. Last, a box of the normalised crop is
    erased."""

    count: int = Field(1, ge=1, description="crops per image")
    size: Size = Field(224, description="side of the crop, or [height, width], pixels")
    sizes: tuple[tuple[Positive, Size], ...] = Field(
        (),
        description="[share, size] of sizes of which every step draws one, the same number in all views; `size` is the "
        "largest; [] = `size` alone",
    )
    scale: tuple[Positive, Positive] = Field((0.2, 1.0), description="share of the image's area, from and to")
    ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="aspect ratio, from and to")
    single_shot: bool = Field(
        False, description="take the first box, cut to the image, instead of drawing until one fits (MAE's probe)"
    )
    interpolation: Interpolation = Field("bicubic", description="how the crop is resized, antialiased")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    rand_augment: str | None = Field(
        None, description="RandAugment as timm writes it, such as rand-m9-mstd0.5-inc1; null = none"
    )
    jitter: Jitter | None = Field(
        None, description="strength of the jitter of [brightness, contrast, saturation, hue]; null = none"
    )
    jitter_p: Probability = Field(0.8, description="probability of the jitter, where there is one")
    grayscale: Probability = Field(0.0, description="probability of grey")
    blur: Probability = Field(0.0, description="probability of a Gaussian blur")
    blur_radius: tuple[Positive, Positive] = Field(
        (0.1, 2.0), description="standard deviation of the blur, pixels, from and to"
    )
    blur_kernel: int | None = Field(
        None, ge=3, description="taps of the blur, odd, as torchvision's; null = Pillow's blur"
    )
    solarize: Probability = Field(0.0, description="probability of inverting all values of 128 and more")
    fused: bool = Field(
        False,
        description="jitter and grey as one affine map: faster, hues turned a little otherwise than torchvision's",
    )
    erase: Probability = Field(0.0, description="probability of noise in a box of the normalised crop (random erasing)")
    mask: AnyMask | None = Field(None, description="patches to hide; null = none")

    @field_validator("scale", "ratio", "blur_radius")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float], info: Any) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"expected [low, high], found {list(bounds)}")
        if info.field_name == "scale" and bounds[1] > 1:
            raise ValueError(f"a crop cannot exceed the picture: expected at most 1, found {bounds[1]}")
        return bounds

    @field_validator("blur_kernel")
    @classmethod
    def _odd(cls, taps: int | None) -> int | None:
        if taps is not None and taps % 2 == 0:
            raise ValueError(f"expected an odd number of taps, found {taps}. Use {taps + 1}.")
        return taps

    @field_validator("rand_augment")
    @classmethod
    def _timm_knows_it(cls, spec: str | None) -> str | None:
        if spec is not None:
            augment.must_be_rand_augment(spec)
        return spec

    @model_validator(mode="after")
    def _colours_once(self) -> View:
        if self.rand_augment is not None and self.jitter is not None:
            raise ValueError(
                f"rand_augment {self.rand_augment!r} and jitter {list(self.jitter)} both change colours: expected one "
                "of them, as in DeiT. Set jitter: null or rand_augment: null"
            )
        return self

    @model_validator(mode="after")
    def _largest_first(self) -> View:
        largest = max((math.prod(shape_of(size)) for _, size in self.sizes), default=math.prod(self.shape))
        if math.prod(self.shape) != largest or (self.sizes and self.size not in [size for _, size in self.sizes]):
            raise ValueError(
                f"size: expected the largest of sizes {[size for _, size in self.sizes]}, found {self.size}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a crop, pixels; of the largest where there are several sizes."""
        return shape_of(self.size)

    @property
    def shares(self) -> tuple[float, ...]:
        """How often each of its sizes is drawn, in proportion; () = it has one."""
        return tuple(share for share, _ in self.sizes)

    def at(self, seed: int, step: int) -> View:
        """The view of a step, with the size that is drawn for it: those of all views have the same number."""
        if not self.sizes:
            return self
        below = np.cumsum(self.shares)
        number = int(np.searchsorted(below, stream(seed, Stream.SIZE, step).random() * below[-1], side="right"))
        return self.model_copy(update={"size": self.sizes[number][1], "sizes": ()})

    @property
    def recolours(self) -> bool:
        """Whether any colour operation can happen."""
        return self.jitter is not None or max(self.grayscale, self.blur, self.solarize) > 0

    @property
    def again(self) -> int | None:
        """The number of the view whose boxes and flips it has; None = its own."""
        return None

    def check(self, patch: int, channels: int = 3, mask_patch: int | None = None) -> None:
        """Raise ValueError when crop, patch size, mask, colours and channels do not fit together; masks are drawn over
        patches of `mask_patch` pixels, by default those of `patch`."""
        for _, size in self.sizes:
            self.model_copy(update={"size": size, "sizes": ()}).check(patch, channels, mask_patch)
        height, width = self.shape
        if height % patch or width % patch:
            near = [max(1, round(side / patch)) * patch for side in self.shape]
            raise ValueError(
                f"patch_size {patch} does not divide a crop of {height}x{width} pixels. The nearest size that it does: "
                f"{near}"
            )
        if self.blur_kernel is not None and self.blur_kernel // 2 >= min(height, width):
            raise ValueError(f"blur_kernel {self.blur_kernel} is too wide for a crop of {height}x{width} pixels")
        if self.mask is not None:
            self.mask.check(self.shape, mask_patch or patch)
        self.must_suit(channels)

    def extent(self) -> str:
        """How much of an image is in it, in words for the plan."""
        low, high = self.scale
        return f"area {low:g} to {high:g}" + (" (single-shot)" if self.single_shot else "")

    def must_suit(self, channels: int) -> None:
        """Raise ValueError when it does what only RGB can have done to it, and these are other channels."""
        if channels == 3:
            return
        if self.rand_augment is not None:
            raise ValueError(
                f"rand_augment {self.rand_augment!r} is for 3 channels, found {channels}. "
                "Set rand_augment: null in every view"
            )
        brightness, contrast, *hues = self.jitter or photometric.NONE
        if any(hues):
            raise ValueError(
                f"jitter of saturation {hues[0]:g} and hue {hues[1]:g} is for 3 channels, found {channels}. "
                f"Set jitter: [{brightness:g}, {contrast:g}, 0, 0] in every view"
            )
        if self.grayscale:
            raise ValueError(
                f"grayscale {self.grayscale:g} is for 3 channels, found {channels}. Set grayscale: 0 in every view"
            )

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Crop:
        """Box and flip for an image of height x width. Consumes a fixed number of draws."""
        uniform = rng.random(4 * CROP_ATTEMPTS + 1)
        choose = first_box if self.single_shot else random_box
        box = choose(uniform[:-1].reshape(CROP_ATTEMPTS, 4), height, width, self.scale, self.ratio)
        return Crop(box, bool(uniform[-1] < self.flip))

    def colours(self, uniform: np.ndarray) -> Photometric:
        """The colours of crops from draws in [0, 1): [count, DRAWS], the same number whatever the view."""
        jittered, grey, blurred, radius, solarized = uniform[:, 8:].T
        low, high = self.blur_radius
        drawn = photometric.factors(self.jitter or photometric.NONE, uniform[:, :4])
        factors = np.where((jittered < self.jitter_p)[:, None], drawn, photometric.UNCHANGED)
        sigma = np.where(blurred < self.blur, low + radius * (high - low), 0)
        return Photometric(
            torch.from_numpy(factors.astype(np.float32)) if self.jitter else None,
            torch.from_numpy(np.argsort(uniform[:, 4:8], axis=1, kind="stable")) if self.jitter else None,
            torch.from_numpy(grey < self.grayscale) if self.grayscale else None,
            torch.from_numpy(sigma.astype(np.float32)) if self.blur else None,
            torch.from_numpy(solarized < self.solarize) if self.solarize else None,
            self.blur_kernel,
            self.fused,
        )

    def apply(self, image: Tensor, crop: Crop) -> Tensor:
        """Cut a uint8 image [C, H, W] by what was drawn: uint8 [C, height, width] of this view."""
        top, left, height, width = crop.box
        pixels = resize(image[:, top : top + height, left : left + width], self.shape, self.interpolation)
        return (pixels.flip(-1) if crop.flip else pixels).contiguous()

    def sample(
        self, image: Tensor, rng: np.random.Generator, patch: int, place: Place = ALONE, *, uncut: bool = False
    ) -> Crops:
        """All crops of this view from one uint8 image [C, H, W], uncoloured, with what was drawn for them.

        Args:
            image: what they are cut from.
            rng: decides boxes, flips, colours and masks.
            patch: side of a patch, pixels.
            place: of the first crop in its global batch, for masks that go by it.
            uncut: whether crops are left to be cut on the device; boxes and all else are the same.
        """
        grid = (self.shape[0] // patch, self.shape[1] // patch)
        pixels, colours, erased, masks = [], [], [], []
        for crop in range(self.count):
            pixels.append(self._row(image, rng) if uncut else self._cut(image, rng))
            if self.recolours:
                colours.append(rng.random(photometric.DRAWS))
            if self.erase:
                erased.append(augment.draw_erased(self.erase, self.shape, rng))
            if self.mask is not None:
                masks.append(self.mask.draw(rng, grid, patch, place.after(crop)))
        return Crops(
            torch.stack(pixels),
            PatchMask.stack(masks) if masks else None,
            self.colours(np.stack(colours)) if colours else None,
            Erased.stack(erased) if erased else None,
            how=Cut(self.shape, self.interpolation) if uncut else None,
        )

    def blank(self, image: Tensor, *, uncut: bool = False) -> Crops:
        """Crops as `sample` makes them of an image that does not have this view, at no cost: black, nothing drawn."""
        assert self.mask is None
        whole = cutting.row(image.shape, (0, 0, *image.shape[-2:]), False)
        pixels = whole if uncut else image.new_zeros(len(image), *self.shape)
        never = Erased(torch.zeros(self.count, 4, dtype=torch.int64), torch.zeros(self.count, dtype=torch.int64))
        return Crops(
            pixels.expand(self.count, *pixels.shape).clone(),
            None,
            self.colours(np.ones((self.count, photometric.DRAWS))) if self.recolours else None,
            never if self.erase else None,
            how=Cut(self.shape, self.interpolation) if uncut else None,
        )

    def _row(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return cutting.row(image.shape, *self.draw(rng, *image.shape[-2:]))

    def _cut(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        crop = self.apply(image, self.draw(rng, *image.shape[-2:]))
        return crop if self.rand_augment is None else augment.rand_augment(crop, self.rand_augment, rng)


def shape_of(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


def resize(image: Tensor, shape: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize a uint8 image [C, H, W] with antialiasing; rounded and saturated to uint8."""
    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    return F.interpolate(image.unsqueeze(0), size=shape, mode=interpolation, antialias=True).squeeze(0)


def center_crop(image: Tensor, shape: tuple[int, int], crop_pct: float, interpolation: Interpolation) -> Tensor:
    """The view of evaluation of a uint8 image [C, H, W]: resize the short side to side / crop_pct, cut the centre.

    `crop_pct` in (0, 1] is the share of the resized image's short side that is kept: 224 / 0.875 gives 256 -> 224.
    """
    height, width = image.shape[-2:]
    targets = (math.floor(side / crop_pct) for side in shape)
    target, short = max(zip(targets, (height, width), strict=True), key=lambda pair: pair[0] / pair[1])
    # the other side is rounded down, as torchvision does
    resized = (height * target // short, width * target // short)
    image = resize(image, resized, interpolation)
    top, left = round((resized[0] - shape[0]) / 2), round((resized[1] - shape[1]) / 2)
    return image[:, top : top + shape[0], left : left + shape[1]].contiguous()
