"""A network outside timm: the import path of a function that builds it, and its output as tokens.

`PACKAGE.MODULE:NAME` names a function or class of a user; `NAME(**arguments)` returns the `nn.Module`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from unlabeled.backbone.encoder import Tokens
from unlabeled.errors import UserError, first_line
from unlabeled.nn.modes import evaluating
from unlabeled.nn.positions import Grid

DOTTED = r"[^\W\d]\w*(?:\.\w+)*"
PATH = re.compile(rf"{DOTTED}:{DOTTED}", re.ASCII)
ADDRESS = re.compile(rf"({DOTTED}:{DOTTED}):(.+)", re.ASCII | re.DOTALL)
USUAL_SIDES = (224, 32, 64, 28, 128, 96, 256, 384, 512, 299, 160, 192)  # of pictures, pixels
COUNT = 2  # pictures in a probe

NAME = re.compile(r"[\w-]{0,100}", re.ASCII)


def _plain(value: Any) -> Any:
    """Refuse text that may be a path or an address: arguments lie in exports too, which may come from anybody."""
    named = isinstance(value, str) and NAME.fullmatch(value)
    number = isinstance(value, int | float) and math.isfinite(value)
    if not (value is None or named or number or isinstance(value, list)):
        raise ValueError("expected a number, true, false, null, a name of letters, digits, _ and -, or a list of these")
    if isinstance(value, list):
        for each in value:
            _plain(each)
    return value


Plain = Annotated[Any, AfterValidator(_plain)]  # an argument of a user's function

Kind = Literal["map", "vector", "tokens"]
SHAPES: dict[Kind, str] = {"map": "[B, D, H, W]", "vector": "[B, D]", "tokens": "[B, N, D]"}
KINDS: dict[int, Kind] = {4: "map", 2: "vector", 3: "tokens"}  # by the number of dimensions


class Reading(NamedTuple):
    """How the output of a network is read.

    `layer` is a name in an output that is a mapping, a list (by number) or an object, or the name of a submodule whose
    output is read; None = the output itself. `prefix` tokens come first; `patch` is the side of a patch of `tokens` in
    pixels, None = that of square patches. Without a `kind` the number of dimensions tells it.
    """

    kind: Kind | None = None
    layer: str | None = None
    prefix: int = 0
    patch: int | None = None

    def __call__(self, network: nn.Module, images: Tensor) -> Tokens:
        """Tokens of images [B, C, H, W]. Raises UserError when the output is none that is expected."""
        return self.tokens(_output(network, images, self.layer), images)

    def tokens(self, output: Any, images: Tensor) -> Tokens:
        """The output of a network for images [B, C, H, W] as tokens; a vector is the only token of an image."""
        if not isinstance(output, Tensor):
            some = ", ".join(_parts(output)) or "the names of its submodules"
            raise UserError(
                f"its output is of type {type(output).__name__}, expected a tensor. Set encoder.layer to one of {some}"
            )
        if not output.is_floating_point():
            raise UserError(f"its output has values of type {output.dtype}, expected fractions")
        kind, shape = self.kind or KINDS.get(output.ndim), list(output.shape)
        if kind is None or KINDS.get(output.ndim) != kind or output.shape[0] != images.shape[0]:
            expected = SHAPES[kind] if kind else " or ".join(SHAPES.values())
            raise UserError(
                f"its output has the shape {shape} for {len(images)} images, expected {expected}. Set encoder.output "
                "to what it is, or encoder.layer to the layer to read"
            )
        if self.prefix and kind != "tokens":
            raise UserError(
                f"encoder.prefix={self.prefix} is of a sequence of tokens, its output is a {kind}. Set it to 0."
            )
        if kind == "tokens":
            grid = self._grid(output.shape[1] - self.prefix, images)
            return Tokens(output[:, : self.prefix], output[:, self.prefix :], grid)
        maps = output if kind == "map" else output[:, :, None, None]
        patches = maps.flatten(2).transpose(1, 2)
        return Tokens(patches[:, :0], patches, (maps.shape[-2], maps.shape[-1]))

    def _grid(self, count: int, images: Tensor) -> Grid:
        """The (rows, columns) of a sequence of `count` patches."""
        height, width = images.shape[-2:]
        side = self.patch or max(1, round(math.sqrt(height * width / max(1, count))))
        if (rows := height // side) * (columns := width // side) != count:
            raise UserError(
                f"{count} tokens after {self.prefix} prefix tokens are no grid of square patches of {height}x{width} "
                "pixels. Set encoder.prefix to the number of tokens in front of them (class token, registers), and "
                "encoder.patch_size to the side of a patch"
            )
        return rows, columns


class Probe(NamedTuple):
    """Facts about a network at one image size."""

    width: int  # of its tokens
    grid: Grid  # (rows, columns) of patches
    unused: frozenset[str]  # parameters that do not reach the output, by name


def _output(network: nn.Module, images: Tensor, layer: str | None) -> Any:
    """The output of a network, or what `layer` names: a part of it, else the output of a submodule."""
    if layer is None:
        return network(images)
    kept: list[Any] = []
    inner = dict(network.named_modules()).get(layer)
    handle = None if inner is None else inner.register_forward_hook(lambda *called: kept.append(called[-1]))
    try:
        output = network(images)
    finally:
        if handle is not None:
            handle.remove()
    parts = _parts(output)
    if layer not in parts and not kept:
        near = [*parts, *(name for name, _ in network.named_children())]
        raise UserError(
            f"neither its output nor its layers have an encoder.layer={layer}: expected one of {', '.join(near)}"
        )
    return parts[layer] if layer in parts else kept[-1]


def _parts(output: Any) -> dict[str, Any]:
    """The tensors in an output, by name or number."""
    if hasattr(output, "_asdict"):  # a named tuple
        output = output._asdict()
    if isinstance(output, list | tuple):
        output = dict(enumerate(output))
    named = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    return {str(name): part for name, part in named.items() if isinstance(part, Tensor)}


def is_path(model: str) -> bool:
    """Whether a name is an import path, and none of timm."""
    return ":" in model


def split_address(where: str) -> tuple[str | None, str]:
    """The import path and the folder of an address `PACKAGE.MODULE:NAME:FOLDER`; None = the folder of a timm model."""
    found = ADDRESS.fullmatch(where)
    return (found[1], found[2]) if found else (None, where)


def builder(path: str) -> Callable[..., Any]:
    """The function or class that an import path names. Raises ValueError when there is none."""
    if not PATH.fullmatch(path):
        raise ValueError(f"expected an import path PACKAGE.MODULE:NAME, found '{path}'")
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the module of a user may raise anything
        words = f"the module '{module}' cannot be imported: {type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{words}. Expected a module on Python's path (PYTHONPATH, or installed)") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"the module '{module}' has no '{name}'.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"'{path}' is of type {type(found).__name__}, expected a function that returns a network")
    return cast("Callable[..., Any]", found)


def build(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of an import path, on the device that is default; one that cannot be built without memory is built
    on the CPU and loses its values.

    Raises ValueError when there is no such function, or it returns no network.
    """
    make, default = builder(path), torch.get_default_device()
    try:
        network = make(**arguments)
    except Exception as error:  # the code of a user may raise anything
        if default.type != "meta":
            told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(f"{path}({told}) raises {type(error).__name__}: {first_line(error)}") from error
        with torch.device("cpu"), torch.random.fork_rng(devices=()):
            network = build(path, arguments).to(default)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{path} returns a {type(network).__name__}, expected a torch.nn.Module")
    return network.to(default) if default.type == "meta" else network


def probe(path: str, arguments: Mapping[str, Any], reading: Reading, channels: int, size: Grid) -> Probe:
    """Encode images of `size` (height, width) on the meta device by a network built for it.

    Raises UserError when it cannot be built, does not take such images, reads values, or its output cannot be read.
    """
    return _probe(path, json.dumps(arguments), reading, channels, tuple(size))


@functools.cache
def _probe(path: str, arguments: str, reading: Reading, channels: int, size: Grid) -> Probe:
    with torch.random.fork_rng(devices=()):
        try:
            return _probe_on("meta", path, json.loads(arguments), reading, channels, size)
        except Exception as error:  # with values it may run, or say better what is wrong
            _probe_on("cpu", path, json.loads(arguments), reading, channels, size)
            raise UserError(
                f"'{path}' runs on the CPU alone: {first_line(error.__cause__ or error)}. Register its tensors as "
                "parameters or buffers, and read no values in its forward (item(), if on a tensor): a plan is made "
                "without values, and a GPU would wait for them."
            ) from error


def _probe_on(device: str, path: str, arguments: dict[str, Any], reading: Reading, channels: int, size: Grid) -> Probe:
    with torch.device(device), torch.enable_grad():
        network = build(path, arguments)
        images = torch.zeros(COUNT, channels, *size)
        try:
            with evaluating(network):
                tokens = reading(network, images)
        except UserError as error:
            raise UserError(f"'{path}' cannot be an encoder: {error}.") from error
        except Exception as error:  # the code of a user may raise anything
            shape = f"{channels} channels and {size[0]}x{size[1]} pixels"
            raise UserError(
                f"'{path}' cannot encode images of {shape}: {type(error).__name__}: {first_line(error)}. Give it "
                "others (the size of the crops, encoder.channels), or set encoder.arguments."
            ) from error
        return _facts(path, network, tokens)


def _facts(path: str, network: nn.Module, tokens: Tokens) -> Probe:
    """Facts by a backward pass from all tokens."""
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    every = torch.cat([tokens.prefix, tokens.patches], dim=1)
    if learning and not every.requires_grad:
        raise UserError(f"no parameter of '{path}' gets a gradient from its output. Remove torch.no_grad from it.")
    gradients = torch.autograd.grad(every.sum(), [*learning.values()], allow_unused=True) if learning else ()
    unused = [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]
    return Probe(every.shape[-1], tokens.grid, frozenset(unused))


def usual_size(path: str, channels: int) -> Grid:
    """The first usual (height, width) that a network takes. Raises UserError when it takes none."""
    for side in USUAL_SIDES:
        with suppress(UserError):
            probe(path, {}, Reading(), channels, (side, side))
            return side, side
    side = USUAL_SIDES[0]
    probe(path, {}, Reading(), channels, (side, side))
    return side, side


def stages(network: nn.Module, unused: frozenset[str]) -> dict[str, int]:
    """The depth of every parameter by name: 0 for the stem, 1 and up for what follows.

    By the `group_matcher` of a network that has one (timm's rule). Else by its children that have parameters in use, in
    the order in which they were registered: the first is the stem, as are parameters of the network's own. A network
    that is one child alone, such as a wrapped `Sequential`, is entered.
    """
    if (matcher := cast("Any", getattr(network, "group_matcher", None))) is not None:
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(network, matcher(coarse=True), reverse=True)
        return {name: depth for name, depth in found.items() if name not in unused}
    paths = {name: name.split(".") for name, _ in network.named_parameters() if name not in unused}
    level = 0
    while (
        paths and all(len(path) > level + 1 for path in paths.values()) and len({p[level] for p in paths.values()}) == 1
    ):
        level += 1
    children = dict.fromkeys(path[level] for path in paths.values() if len(path) > level + 1)
    depth = {child: number for number, child in enumerate(children)}
    return {name: depth.get(path[level], 0) for name, path in paths.items()}
