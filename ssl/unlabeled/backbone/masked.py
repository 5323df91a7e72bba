"""A CNN that does not see hidden cells (SparK, Tian et al. 2023, section 3.1): dense layers that act as sparse ones.

`mask_` gives layers of a timm network another `forward`, in place: its parameters and their names stay, and so does its
function while nothing is hidden. Under a mask, a layer that mixes positions sees zeros in place of hidden ones, and
statistics are those of the visible ones. Values at hidden positions may be anything; they never reach a visible one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError, first_line
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.modes import evaluating
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import Grid
from unlabeled.nn.recompute import Held

FINEST = 4  # smallest stride of a map that a decoder reads: a stem's map is none of them
WINDOWS = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
# timm's layers by class name: those that pool the whole map into gates, and MLPs of each position
GATES = ("SEModule", "SqueezeExcite", "EffectiveSEModule", "EcaModule")
MLPS = ("Mlp", "GlobalResponseNormMlp")
ZEROED = ("BlurPool2d", "GlobalResponseNorm")
OTHER = "Use another CNN, such as resnet50 or convnext_tiny."


class Visible:
    """The visible cells of images, at any resolution: a map [B, C, H, W] has `side` x `side` positions in a cell.

    Args:
        keep: [B, K] int64, numbers of the visible cells, as many in every image.
        grid: (rows, columns) of cells.
    """

    def __init__(self, keep: Tensor, grid: Grid) -> None:
        self.keep, self.grid = keep.sort(dim=1).values, grid
        self.maps: dict[int, Tensor] = {}
        self.rows: dict[int, Tensor] = {}

    @classmethod
    def of(cls, mask: PatchMask, images: Tensor, like: Visible) -> Visible:
        """What a mask leaves of images [B, C, H, W], at the resolutions at which `like` was asked."""
        side = mask.side(images)
        visible = cls(mask.indices()[0], (images.shape[-2] // side, images.shape[-1] // side))
        for side in like.maps:
            visible.map(side)
        for side in like.rows:
            visible.index(side)
        return visible

    def side_of(self, height: int) -> int:
        """The side of a cell in a map of that height."""
        return height // self.grid[0]

    def map(self, side: int) -> Tensor:
        """True where visible [B, 1, H, W]."""
        if side not in self.maps:
            cells = torch.zeros(len(self.keep), self.grid[0] * self.grid[1], dtype=torch.bool, device=self.keep.device)
            cells = cells.scatter(1, self.keep, True).unflatten(1, (1, *self.grid))
            self.maps[side] = cells.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return self.maps[side]

    def index(self, side: int) -> Tensor:
        """Numbers of the visible positions among B x H x W, image by image [M] int64."""
        if side not in self.rows:
            (rows, columns), offset = self.grid, torch.arange(side, device=self.keep.device)
            image = torch.arange(len(self.keep), device=self.keep.device).view(-1, 1, 1, 1) * rows
            row, column = ((place * side)[:, :, None, None] for place in (self.keep // columns, self.keep % columns))
            down = image * side + row + offset.view(-1, 1)
            self.rows[side] = (down * columns * side + column + offset).flatten()
        return self.rows[side]

    def zeroed(self, x: Tensor, value: Tensor | float = 0.0) -> Tensor:
        """The same map [B, C, H, W], zero or another value where hidden."""
        return torch.where(self.map(self.side_of(x.shape[2])), x, value)

    def take(self, x: Tensor) -> Tensor:
        """Visible positions of a map [B, H, W, C]: [M, C]."""
        return x.flatten(0, 2).index_select(0, self.index(self.side_of(x.shape[1])))

    def put(self, rows: Tensor, height: int, fill: Tensor | None = None) -> Tensor:
        """A map [B, H, W, C] with rows [M, C] at visible positions, and `fill` [C] or zeros elsewhere."""
        side = self.side_of(height)
        shape = (len(self.keep), self.grid[0] * side, self.grid[1] * side)
        empty = rows.new_zeros(1) if fill is None else fill.to(rows.dtype)
        whole = empty.expand(shape[0] * shape[1] * shape[2], rows.shape[1])
        return whole.index_copy(0, self.index(side), rows).unflatten(0, shape)

    def seen(self, x: Tensor) -> Tensor:
        """Visible positions of a map [B, C, H, W]: [M, C]."""
        return self.take(x.permute(0, 2, 3, 1))

    def like(self, x: Tensor, rows: Tensor, fill: Tensor | None = None) -> Tensor:
        """As `put`, a map of the height of x [B, C, H, W], and laid out in memory as x is."""
        whole = self.put(rows, x.shape[2], fill).permute(0, 3, 1, 2)
        return whole.contiguous() if x.is_contiguous() else whole


class Level(NamedTuple):
    """A feature map that a decoder reads."""

    number: int  # among `Encoder.stages`
    width: int  # channels
    stride: int  # pixels per position


# ---------------------------------------------------------------- layers: what takes the place of their `forward`


def _plain(part: Any, x: Tensor) -> Any:
    return type(part).forward(part, x)


def _zeroed(part: Any, x: Tensor) -> Any:
    """Of layers that mix positions: hidden ones are zero."""
    if (visible := part.held.value) is None:
        return _plain(part, x)
    if getattr(part, "channel_dim", 1) == -1:
        return _plain(part, visible.zeroed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return _plain(part, visible.zeroed(x))


def _gated(part: Any, x: Tensor) -> Any:
    """Of gates by the mean of the map: hidden positions have the mean of the visible ones, which leaves it as it is."""
    if (visible := part.held.value) is None:
        return _plain(part, x)
    share = visible.keep.shape[1] / (visible.grid[0] * visible.grid[1])
    return _plain(part, visible.zeroed(x, visible.zeroed(x).mean((2, 3), keepdim=True) / share))


def _normed(part: Any, x: Tensor) -> Any:
    """Of batch normalisation: that of the visible positions, zeros elsewhere."""
    if (visible := part.held.value) is None:
        return _plain(part, x)
    return visible.like(x, _plain(part, visible.seen(x)))


def _by_position(part: Any, x: Tensor) -> Any:
    """Of an MLP on maps [B, H, W, C]: visible positions alone are computed, zeros elsewhere."""
    if (visible := part.held.value) is None or x.ndim != 4:
        return _plain(part, x)
    rows = visible.take(x).unflatten(0, (len(x), -1, 1))  # a map of one column, for norms over an image's positions
    return visible.put(_plain(part, rows).flatten(0, 2), x.shape[1])


def mask_(network: nn.Module) -> Held:
    """Let layers of a timm network heed a `Visible`, where `Held.holding` gives them one."""
    held = Held()
    _mask_(network, held)
    return held


def _mask_(network: nn.Module, held: Held) -> None:
    for part in network.children():
        if (forward := _forward_of(part)) is not None:
            part.held = held  # type: ignore[assignment]
            part.forward = MethodType(forward, part)
        if forward is not _by_position:  # within it everything is visible
            _mask_(part, held)


def _forward_of(part: Any) -> Callable[[Any, Tensor], Any] | None:
    """What takes the place of a layer's `forward`; None = positions do not meet in it, or nothing is known of it."""
    name = type(part).__name__
    if isinstance(part, BatchNorm):
        return _normed
    if name in GATES:
        return _gated
    if name in MLPS and isinstance(part.fc1, nn.Linear):
        return _by_position
    mixes = isinstance(part, WINDOWS) and _overlaps(part)
    return _zeroed if mixes or name in ZEROED else None


def _overlaps(window: Any) -> bool:
    """Whether windows of a convolution or pool reach over their stride, so that they may lie in two cells."""
    sizes, strides, paddings = (
        (value, value) if isinstance(value, int) else value
        for value in (window.kernel_size, window.stride, window.padding)
    )
    return isinstance(paddings, str) or any(paddings) or any(k > s for k, s in zip(sizes, strides, strict=True))


# ---------------------------------------------------------------- whether a network can be masked


def probe(encoder: Encoder, held: Held) -> tuple[list[Level], Visible]:
    """The maps that a decoder reads of a masked encoder, the deepest first; and a `Visible` that was asked at all
    resolutions of the network. Weights that no such map depends on stop learning.

    Raises UserError when the network has no such maps, or a visible position depends on a hidden one.
    """
    weight, side = next(encoder.parameters()), 2 * encoder.patch_size
    visible = Visible(torch.tensor([[1, 2], [1, 2]], device=weight.device), (2, 2))
    drawn = torch.rand(1, encoder.channels, side, side, generator=torch.Generator().manual_seed(0), device="cpu")
    images = drawn.to(weight).expand(2, -1, -1, -1)
    with (
        evaluating(encoder),
        held.holding(visible),
        _by_ones(encoder),
        _disturbed(encoder, visible),
        torch.enable_grad(),
    ):
        try:
            maps = encoder.stages(images)
        except Exception as error:  # timm's networks raise what they like
            raise UserError(
                f"{encoder.in_words(encoder.model)} cannot be masked: {first_line(error)}. {OTHER}"
            ) from error
        levels = levels_of(encoder, maps, side)
        seen = [visible.seen(maps[level.number]) for level in levels]
        if not weight.is_meta and any(_differ(*rows.detach().chunk(2)) for rows in seen):
            raise UserError(
                f"{encoder.in_words(encoder.model)} cannot be masked: its visible positions depend on hidden ones. "
                f"{OTHER}"
            )
        _stop_unread_(encoder, torch.stack([rows.sum() for rows in seen]).sum())
    return levels, visible


@contextmanager
def _disturbed(network: nn.Module, visible: Visible) -> Iterator[None]:
    """Within, all convolutions give other values at the hidden positions of the second image than of the first."""
    second = torch.tensor([0.0, 1.0], device=visible.keep.device).view(2, 1, 1, 1)

    def disturb(part: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return visible.zeroed(out, out + second * (3 * out.flip(1) + 1)) if out.shape[2] >= visible.grid[0] else out

    hooks = [part.register_forward_hook(disturb) for part in network.modules() if isinstance(part, nn.Conv2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def levels_of(encoder: Encoder, maps: list[Tensor], side: int) -> list[Level]:
    """The last map of each resolution, the deepest first, of images of `side` pixels: strides halve one by one.

    Raises UserError when the deepest has another stride than the encoder says.
    """
    found = {side // one.shape[2]: Level(number, one.shape[1], side // one.shape[2]) for number, one in enumerate(maps)}
    stride, levels = encoder.patch_size, list[Level]()
    while stride in found and stride >= FINEST:
        levels.append(found[stride])
        stride //= 2
    if not levels:
        words = f"{encoder.in_words(encoder.model)} cannot be masked: expected a last feature map of stride"
        raise UserError(f"{words} {encoder.patch_size}, found {sorted(found)}. {OTHER}")
    return levels


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-5 * one.abs().max())


def _stop_unread_(encoder: Encoder, total: Tensor) -> None:
    """Weights that `total` does not depend on, such as a norm before a classifier, do not learn."""
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(learning, torch.autograd.grad(total, learning, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


@contextmanager
@torch.no_grad()
def _by_ones(network: nn.Module) -> Iterator[None]:
    """Within, weights of norms and scales are 1, so that branches which begin at zero count."""
    named = network.named_parameters()
    scales = [parameter for name, parameter in named if parameter.ndim == 1 and not name.endswith("bias")]
    before = [scale.clone() for scale in scales]
    for scale in scales:
        scale.fill_(1)
    try:
        yield
    finally:
        for scale, values in zip(scales, before, strict=True):
            scale.copy_(values)
