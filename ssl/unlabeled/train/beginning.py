"""The beginning of a pretraining with weights: those of an encoder, and the heads of its method where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch

from unlabeled.backbone.address import Adapt, Found, check_adapt, find
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import fitted, weights_digest
from unlabeled.errors import UserError
from unlabeled.nn.positions import Grid
from unlabeled.pretrain.method import PretrainMethod
from unlabeled.train.state import prefix_of, split_heads

SHOWN = 4  # differences of two networks in a message


class Loaded(NamedTuple):
    """What a method got from an address.

    Attributes:
        parts: of the method beside its encoders.
        wrong: why these are new, in words; "" = they were loaded too.
        left: weights at the address that were not loaded.
        held: weights of the encoder that were loaded and do not learn.
        new: weights of the encoder that the address does not have: of a pooling of its own.
    """

    parts: tuple[str, ...]
    wrong: str
    left: tuple[str, ...]
    held: tuple[str, ...]
    new: tuple[str, ...]


class Begun(NamedTuple):
    """The weights that a run begins with, for its facts, its plan and its card."""

    digest: str  # see `weights_digest`
    new: tuple[str, ...]  # parts of the method that are not loaded
    words: str  # the address, what of it is loaded, what is new, and what is left out


class Beginning(NamedTuple):
    """The weights to begin with, fitted to the images of a recipe."""

    address: str
    found: Found
    encoder: Encoder  # at the size of the images

    def load_(self, method: PretrainMethod) -> Loaded:
        """Give all encoders of a method the weights, and its heads where those of the address fit it by all names and
        shapes; where not, they stay as they began, and so do the teacher's, which follow them. Encoders that are no
        part of its state, frozen teachers, keep their own."""
        evaluated, state = method.evaluated(), method.state_dict()
        alike = (part for part in method.modules() if isinstance(part, Encoder) and _alike(part, evaluated))
        found = {prefix_of(method, part): part for part in alike}
        encoders = {prefix: part for prefix, part in found.items() if any(name.startswith(prefix) for name in state)}
        others = {prefix: encoder for prefix, encoder in encoders.items() if encoder is not evaluated}
        _, rest = split_heads(method)
        wrong = self._misfit(method, rest, tuple(others))
        heads = {} if wrong else self._heads(rest, others)
        weights = repooled(self.encoder.vit.state_dict(), evaluated)
        with torch.no_grad():
            for prefix, encoder in encoders.items():
                for name, tensor in encoder.vit.state_dict().items():
                    tensor.copy_(heads.get(f"{prefix}{name}", weights.get(name, tensor)))
            for name, tensor in rest.items():
                if name in heads:
                    tensor.copy_(heads[name])
        parts = dict.fromkeys(_part(name, tuple(encoders)) for name in rest if not name.startswith(tuple(encoders)))
        held = dict.fromkeys(name for encoder in encoders.values() for name in _held(encoder))
        left = [name for name in weights if name not in evaluated.vit.state_dict()]
        left += sorted({name.partition(".")[0] for name in self.found.heads}) if wrong else []
        new = tuple(name for name in evaluated.vit.state_dict() if name not in weights)
        return Loaded(tuple(parts), wrong, (*self.found.left, *left), tuple(held), new)

    def _misfit(self, method: PretrainMethod, rest: Tensors, others: tuple[str, ...]) -> str:
        """Why the heads of the address are not those of a method, in words; "" = they are.

        A fixed table that follows from the size of the images may have another shape, and so may the weights of other
        encoders, which are fitted as the evaluated one's.
        """
        heads = self.found.heads
        if not rest:
            return ""
        if not heads:
            return "there are none"
        if rest.keys() != heads.keys():
            name = sorted(rest.keys() ^ heads.keys())[0]
            return f"of another method or other settings, {'without' if name in rest else 'with'} {name}"
        fixed = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
        shapes = {name: tensor.shape for name, tensor in self.found.encoder.vit.state_dict().items()}
        for name, tensor in rest.items():
            prefix = next((prefix for prefix in others if name.startswith(prefix)), "")
            expected = shapes.get(name.removeprefix(prefix), tensor.shape) if prefix else tensor.shape
            if heads[name].shape != expected and (prefix or name not in fixed):
                return f"of other shapes: {name} {list(heads[name].shape)}, here {list(expected)}"
        return ""

    def _heads(self, rest: Tensors, others: dict[str, Encoder]) -> Tensors:
        """The heads that fit; other encoders than the evaluated one among them are fitted as that one."""
        heads, old = self.found.heads, self.found.encoder.native_grid
        taken = {name: heads[name] for name, tensor in rest.items() if heads[name].shape == tensor.shape}
        for prefix, encoder in others.items():
            found = {name.removeprefix(prefix): t for name, t in heads.items() if name.startswith(prefix)}
            if found:  # a part of a run alone has none
                taken |= {f"{prefix}{name}": t for name, t in type(encoder).fitted(found, old, encoder.vit).items()}
        return taken

    def described(self, method: PretrainMethod, how: Preprocessing) -> Begun:
        """What a method on the meta device would get, in words, and the digest of the weights as they lie there; `how`
        are the pictures of the recipe prepared."""
        loaded = self.load_(method)
        heads = {} if loaded.wrong else self.found.heads
        digest = weights_digest({**self.found.encoder.state_dict(), **heads})
        pool = f"new: {_some(loaded.new)}" if loaded.new else ""
        new = f"new: {', '.join(loaded.parts)} (heads: {loaded.wrong})" if loaded.wrong else ""
        left = f"left out: {_some(loaded.left)}" if loaded.left else ""
        held = f"held as loaded: {_some(loaded.held)}" if loaded.held else ""
        words = [
            f"{self.address} ({self.found.encoder.model}, weights {digest})",
            f"loaded: {', '.join(['encoder', *(() if loaded.wrong else loaded.parts)])}",
            *filter(None, [pool, new, *self._fits(how), *self.found.notes, left, held]),
        ]
        return Begun(digest, loaded.parts if loaded.wrong else (), "; ".join(words))

    def _fits(self, how: Preprocessing) -> Iterator[str]:
        """How the encoder was fitted, and what else differs of the pictures, in words."""
        found, theirs = self.found.encoder, self.found.how
        if found.sized(found.model) and found.image_size != self.encoder.image_size:
            old, new = ("x".join(map(str, one.image_size)) for one in (found, self.encoder))
            yield f"resampled: positions of {old} to {new} pixels"
        if found.channels != self.encoder.channels:
            yield f"fitted: {found.channels} channels to {self.encoder.channels}"
        elif (tuple(how.mean), tuple(how.std)) != (tuple(theirs.mean), tuple(theirs.std)):
            yield f"before, pictures were normalised by mean {list(theirs.mean)} and std {list(theirs.std)}"


def begin(
    address: str, config: EncoderConfig, shape: Grid, channels: int, adapt: Adapt, fields: Sequence[str]
) -> Beginning:
    """Read the weights at an address and fit them to the images of a recipe.

    Args:
        address: see `find`.
        config: the recipe's encoder.
        shape: (height, width) of the images, pixels.
        channels: of the images.
        adapt: what may be fitted.
        fields: of the recipe that say the size.

    Raises:
        UserError: there are none, they are of another network, or must be fitted in a way that `adapt` does not name.
    """
    with torch.random.fork_rng(devices=()):
        found = find(address)
        encoder = found.encoder
        check_adapt(encoder, shape, channels, adapt, fields)
        with torch.device("meta"):
            calm = config.calm.model_copy(update={"drop_path_uniform": False})
            own = calm.build(shape)
            if own.pools_itself and not encoder.pools_itself:  # a method of patches left its pooling out
                own = calm.build(shape, pooled=False)
        if encoder.image_size != shape or encoder.channels != channels:
            encoder = fitted(encoder, shape, channels, own.arguments)
    if differences := list(_differences(encoder, own)):
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(
            f"init={address} has the weights of another network than method.encoder: "
            f"{'; '.join(differences[:SHOWN])}{more}. Leave these fields of method.encoder out, they follow from the "
            "weights; or name other weights, or set init=null."
        )
    return Beginning(address, found, encoder)


def _differences(found: Encoder, own: Encoder) -> Iterator[str]:
    """Differences between the networks of two encoders, in words."""
    for name in ("patch_size", "width", "depth"):
        if (theirs := getattr(found, name)) != (ours := getattr(own, name)):
            yield f"{name} is {theirs}, the recipe says {ours}"
    if (theirs := _attention_heads(found)) != (ours := _attention_heads(own)):
        yield f"attention heads are {theirs}, the recipe says {ours}"
    every, wanted = found.vit.state_dict(), own.vit.state_dict()
    same = every.keys() == wanted.keys()
    weights = repooled(every, own)
    for name in {**weights, **wanted}:
        one, other = (list(some[name].shape) if name in some else "missing" for some in (weights, wanted))
        if one != other:
            yield f"{name} {one}, the recipe's network has {other}"
    lines, others = (str(encoder.vit).splitlines() for encoder in (found, own))
    if same and lines != others:
        line, its = next(pair for pair in zip_longest(lines, others, fillvalue="") if pair[0] != pair[1])
        yield f"'{found.model}' has {line.strip()}, the recipe's '{own.model}' {its.strip()}"


def _attention_heads(encoder: Encoder) -> str:
    heads = dict.fromkeys(getattr(part, "num_heads", None) for part in encoder.vit.modules())
    return ", ".join(str(number) for number in heads if number is not None)


def repooled(weights: Tensors, encoder: Encoder) -> Tensors:
    """Weights of a network that may have another pooling than an encoder: a norm after pooling becomes the final one
    where the encoder has that."""
    own = encoder.vit.state_dict()
    moved = {f"fc_{name}": name for name in ("norm.weight", "norm.bias") if name in own and f"fc_{name}" not in own}
    return {moved.get(name, name): tensor for name, tensor in weights.items()}


def _alike(encoder: Encoder, other: Encoder) -> bool:
    return (encoder.model, encoder.arguments) == (other.model, other.arguments)


def _part(name: str, prefixes: tuple[str, ...]) -> str:
    """The part of a method that a weight belongs to: of a part with an encoder in it, the part within."""
    first, _, more = name.partition(".")
    within = any(prefix.startswith(f"{first}.") for prefix in prefixes)
    return f"{first}.{more.partition('.')[0]}" if within else first


def _held(encoder: Encoder) -> Iterator[str]:
    """Weights that do not learn of an encoder that does."""
    parameters = dict(encoder.vit.named_parameters())
    if any(parameter.requires_grad for parameter in parameters.values()):
        yield from (name for name, parameter in parameters.items() if not parameter.requires_grad)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
