"""The contract of an encoder: a timm model without a head, of one of the families in `families/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.errors import UserError
from unlabeled.nn.modes import without_values
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import Grid, Interpolation

Tensors = dict[str, Tensor]

# how tokens become one vector of an image: class token, mean of the patches, both, mean and maximum of the patches, or
# the network's own pooling, timm's `forward_head(pre_logits=True)`
Pool = Literal["cls", "mean", "cls_mean", "mean_max", "own"]
# timm's names for the poolings of its classifiers
TIMM_POOLS = {"cls": "token", "mean": "avg", "mean_max": "avgmax", "attention": "map"}

# names of timm's linear layers of attention and MLP
LINEARS = ("qkv", "proj", "fc1", "fc2")

# timm's arguments of a classifier's pooling
POOLING = ("global_pool", "fc_norm", "use_fc_norm", "pool_include_prefix")

# ways to hide patches: leave them out (MAE), put a mask token in their places (SimMIM, iBOT), or make them zero in all
# feature maps (SparK, see `masked.py`)
Hiding = Literal["drop", "replace", "zero"]
Hidden: TypeAlias = PatchMask | None  # no mask = all patches are seen
Fill: TypeAlias = Tensor | None

# initialisations: a method's, or `scratch`, of a network that is trained without pretraining
Scheme = Literal["mae", "mocov3", "dino", "simmim", "ijepa", "scratch"]


class Tokens(NamedTuple):
    """The output of an encoder, after the final norm."""

    prefix: Tensor  # [B, P, D], the class token and registers, in this order
    patches: Tensor  # [B, N, D], or [B, K, D] of the visible patches in the order of `PatchMask.keep`
    grid: Grid  # (rows, columns) of the whole image's patches, hidden ones included
    raw: Any = None  # the same as timm's `forward_features` gives it, for the network's own pooling
    layers: tuple[Tensor, ...] = ()  # [B, P + K, D] before the first block and after each, without a norm; see `layers`

    def pool(self, how: Literal["cls", "mean"]) -> Tensor:
        """One vector per image [B, D]: the class token, or the mean of the patches."""
        return self.prefix[:, 0] if how == "cls" else self.patches.mean(1)


class InTimm(NamedTuple):
    """The part of timm's `config.json` that differs between families."""

    pool: str  # timm's name of the pooling
    arguments: dict[str, Any]  # `model_args`
    grid: list[int] | None = None  # `pool_size`, (rows, columns) of the last feature map; None = not said


class Encoder(nn.Module, ABC):
    """A timm model without a head. A class is abstract or final; `families/NAME.py` has one final class.

    `encoder(images)` encodes everything; `encoder(images, drop=mask)` only the visible patches (MAE);
    `encoder(images, replace=mask, fill=token)` everything, hidden patches replaced by `token` (SimMIM, iBOT).
    `model`, its timm name, `arguments` of `create` and `interpolation` of positions (see `resample`) build it again.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset()
    layered: ClassVar[bool] = False  # has `layers`
    names: ClassVar[str] = ""  # of its networks in advice, such as `vit_*`
    last: ClassVar[str] = "last stage's map"  # the only tokens that can be read, in words
    resnet_heads: ClassVar[bool] = False  # gets the heads that MoCo v3 and DINO put on a ResNet
    other_norm: ClassVar[bool] = False  # `prefix` can take another final norm
    drops_paths: ClassVar[bool] = True  # `create` takes a rate of drop path
    noun: ClassVar[str] = ""  # in front of a model's name
    exported: ClassVar[Mapping[str, Any]] = {}  # type of each `model_args` field that an export may have
    bare: ClassVar[Mapping[str, Any]] = {}  # arguments of timm for random weights without a head
    # how names of parameters end that SimMIM's code keeps from weight decay, its mask token's included
    undecayed: ClassVar[tuple[str, ...]] = ("cls_token", "reg_token", "dist_token", "pos_embed")
    blocks_in_python: ClassVar[str]  # `blocks` of the last {n} from `model` and `images`, by timm alone: model cards

    vit: Any  # the timm model, built with `num_classes=0`: its attributes are timm's
    patch_size: int  # side of a patch, or the total stride, pixels
    native_grid: Grid  # (rows, columns) of the patches that it was built for
    num_prefix: int  # number of prefix tokens

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__()
        self.vit, self.model, self.arguments = vit, model, dict(arguments)
        self.interpolation: Interpolation = interpolation
        self.width: int = self.vit.num_features  # D
        self.channels: int = self.vit.in_chans

    # ---------------------------------------------------------------- before there is one: by its timm name

    @classmethod
    @abstractmethod
    def claims(cls, model: str) -> int:
        """How closely a timm model belongs to this family, 0 = not at all: the one with the highest number has it."""

    @classmethod
    @abstractmethod
    def patch_size_of(cls, model: str) -> int:
        """The patch size unless a recipe sets one. Raises ValueError when the model cannot be an encoder."""

    @classmethod
    def embedding_patch_of(cls, fields: Mapping[str, Any]) -> int:
        """The side of the patches that are embedded, pixels, for a recipe's fields: the smallest that can be hidden."""
        return int(fields["patch_size"])

    @classmethod
    def takes_any_size(cls, model: str) -> bool:
        """Whether a network encodes images of other sizes than the one that it was built for."""
        return True

    @classmethod
    def sized(cls, model: str) -> bool:
        """Whether a network has weights that belong to an image size, such as positions."""
        return True

    @classmethod
    def default_positions(cls, model: str) -> str:
        """The positions unless a recipe says others."""
        return "sincos"

    @classmethod
    def crop_multiple(cls, model: str, patch_size: int) -> int:
        """The number of pixels whose multiples the sides of a crop must be."""
        return patch_size if cls.sized(model) else 1

    @classmethod
    def in_words(cls, model: str) -> str:
        """The model in a message."""
        return f"{cls.noun}'{model}'"

    @classmethod
    def summary(cls, fields: Mapping[str, Any]) -> str:
        """The patches and positions of a recipe's fields, in words for a plan."""
        patch = fields["patch_size"]
        words = f"patch {patch}, {fields['positions']} positions"
        return words if cls.crop_multiple(fields["model"], patch) > 1 else f"stride {patch}"

    @classmethod
    @abstractmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        """Raise ValueError when a field of the recipe does not fit; `changed` tells whether its value differs from the
        default, `others` are the fields before it, `model` among them."""

    @classmethod
    def check_size(cls, model: str, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError when `create(model, arguments)` is known not to take images of its size and channels."""

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        """Whether a network has such features of its last blocks, as far as its name decides it."""
        return True

    @classmethod
    @abstractmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        """The arguments of `create` for a recipe's fields, defaults, image size and channels left out; without `pooled`
        the network gets no pooling of its own, where timm can leave it out."""

    @classmethod
    @abstractmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        """A timm model with random weights, by name. Raises ValueError when timm cannot build it so.

        `arguments` are those of `timm.create_model`, with `img_size` even of a network that takes any; `drop_path` is
        the rate of the last block; 0 `classes` = no head.
        """

    @classmethod
    def build(
        cls, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size", drop_path: float = 0.0
    ) -> Encoder:
        """An encoder with random weights. Raises ValueError when it would encode the timm model wrongly."""
        return cls(cls.create(model, arguments, drop_path), model, arguments, interpolation)

    # ---------------------------------------------------------------- timm models of this family

    @classmethod
    @abstractmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        """How an export tells timm to build `create(model, arguments)`, pooling features by `pool` where timm can."""

    @classmethod
    def from_export(cls, config: Mapping[str, Any]) -> nn.Module:
        """The network of a `config.json`, which gives logits or, without classes, features; with random weights."""
        import timm

        network: nn.Module = timm.create_model(
            config["architecture"], num_classes=config["num_classes"], **config["model_args"]
        )
        return network

    @classmethod
    def layers_in_timm(cls, model: str) -> tuple[Any, Any]:
        """timm's names of the first convolutions and the classifiers."""
        import timm

        own = timm.get_pretrained_cfg(model)
        return own.first_conv, own.classifier

    @classmethod
    def address(cls, model: str, folder: str) -> str:
        """The address of an export for the commands of this package."""
        return folder

    @classmethod
    def loaded_by(cls, model: str, folder: str) -> str:
        """How others load an export, in a few words."""
        return f"timm.create_model('local-dir:{folder}', pretrained=True)"

    @classmethod
    def loading(cls, model: str, arguments: Mapping[str, Any], headed: bool = False, told: str = "") -> str:
        """Lines of Python that load an export, THIS_FOLDER, as `model`: model cards.

        Its weights are `headed` or not; `told` are further arguments of timm.
        """
        return f"import timm\nmodel = timm.create_model('local-dir:THIS_FOLDER', pretrained=True{told})"

    @classmethod
    @abstractmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        """The arguments of `create`, channels left out, for a timm model with its own weights."""

    @classmethod
    def resized(
        cls, model: str, arguments: Mapping[str, Any], size: Grid, like: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The arguments of `create` for images of another size (height, width), pixels; others that belong to a size,
        such as windows, are taken from `like`, arguments for that size, where they are given."""
        return {**arguments, "img_size": list(size)}

    @classmethod
    def without_head(cls, model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of an encoder for those of its export, or of a classifier on it."""
        return {name: value for name, value in arguments.items() if name not in POOLING}

    @classmethod
    def most_patches(cls, arguments: Mapping[str, Any]) -> int:
        """The largest number of patches in a row that an export may ask for."""
        return 1024

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """Weights of a timm model with `old` (rows, columns) of patches, fitted to another image size or number of
        channels, those of `model`; see `fit_channels`."""
        return fit_channels(weights, model)

    @classmethod
    def named_for(cls, weights: Tensors, model: Any) -> Tensors:
        """Weights of an export under the names of the network that `from_export` gives."""
        return weights

    @classmethod
    def of_classifier(cls, weights: Tensors) -> Tensors:
        """Weights of an exported classifier, those of its backbone under the names of an encoder."""
        return weights

    @classmethod
    def linears_(cls, model: Any) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """Linear layers of a timm model that LoRA may wrap, as `linears`; the model calls them from then on."""
        for part in model.modules():
            if hasattr(part, "qkv_bias_separate"):
                part.qkv_bias_separate = True  # else timm reads the weight and passes the layer by
        return cls.linears(model)

    @classmethod
    def linears(cls, model: Any) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """Linear layers of a timm model that LoRA may wrap, as (owner, names): by default those of attention and MLP
        with timm's usual names."""
        found = ((one, [n for n in LINEARS if isinstance(getattr(one, n, None), nn.Linear)]) for one in model.modules())
        return [(owner, tuple(names)) for owner, names in found if names]

    @classmethod
    def unfuse_(cls, model: Any) -> None:
        """Replace operations of a timm model that graph formats such as ONNX do not have, where there are any."""

    @classmethod
    @abstractmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        """Tokens of the last blocks, each through the final norm, by timm's own code, as `blocks_in_python` says."""

    # ---------------------------------------------------------------- one encoder

    @property
    @abstractmethod
    def image_size(self) -> Grid:
        """(height, width) in pixels that it was built for."""

    @property
    def embedding_width(self) -> int:
        """The width of embedded patches, and of the token that `replace` puts in their places."""
        return self.width

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks, or of stages."""

    def fields(self) -> dict[str, Any]:
        """The fields of a recipe that build such a network again, by name; None = the timm model's, and others are left
        to the recipe."""
        return {"model": self.model.split(".")[0], "channels": self.channels}

    @property
    def adaptable(self) -> bool:
        """Whether it has linear layers that LoRA may wrap."""
        return bool(self.linears(self.vit))

    @property
    def readable(self) -> int:
        """How many of the last blocks have tokens that can be read."""
        return self.depth

    @property
    @abstractmethod
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""

    @property
    @abstractmethod
    def pools(self) -> tuple[str, ...]:
        """The poolings of its timm classifier, see `TIMM_POOLS`."""

    @property
    def pools_itself(self) -> bool:
        """Whether its own pooling is another than the class token or the mean of the patches."""
        return False

    @property
    def default_pool(self) -> Literal["cls", "mean", "own"]:
        """How its tokens become one vector unless somebody says: its own pooling where it has one, the class token,
        else the mean of the patches."""
        return "own" if self.pools_itself else "cls" if self.has_class_token else "mean"

    @property
    def feature_width(self) -> int:
        """The width of `feature`."""
        return int(self.vit.head_hidden_size) if self.pools_itself else self.width

    def width_of(self, block: int) -> int:
        """The width of the tokens of a block, counted from the end and from 1."""
        return self.width

    @abstractmethod
    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        """Encode images [B, C, H, W]. Raises ValueError when it cannot hide patches so, or take images of this size."""

    def prefix(self, images: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Prefix tokens of images [B, C, H, W] through another final norm than its own, where it has `other_norm`
        (DINOv3's local crops): [B, P, D]."""
        assert norm is None, "this network has one final norm"
        return self(images).prefix

    @cached_property
    def normalises(self) -> bool:
        """Whether it has batch normalisation."""
        return any(isinstance(part, _BatchNorm) for part in self.modules())

    def feature(self, images: Tensor, views: int = 1) -> Tensor:
        """The feature of images [views * B, C, H, W] in methods of several crops [views * B, D]: see `default_pool`.

        Views are encoded together, but by a network with batch normalisation each as a batch of its own.
        """
        if views > 1:
            # a copy: the slice of a class token would keep the tokens
            batches = images.chunk(views) if self.normalises else (images,)
            return torch.cat([self.feature(batch) for batch in batches])
        tokens, how = self(images), self.default_pool
        return self.own(tokens) if how == "own" else tokens.pool(how)

    def own(self, tokens: Tokens) -> Tensor:
        """The network's own pooling of the tokens of `forward` [B, D'], timm's `forward_head(pre_logits=True)`."""
        pooled: Tensor = self.vit.forward_head(tokens.raw, pre_logits=True)
        return pooled

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images [B, C, H, W] at several depths, the earliest first [B, D, rows, columns]: for
        segmentation and detection."""
        maps: list[Tensor] = self.vit.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
        return maps

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Tokens after some blocks, each through the final norm (DINO's and DINOv2's `get_intermediate_layers`).

        Blocks are numbered from 0, or from the end where negative; the last gives the tokens of `forward`, and is the
        only one by default. Raises ValueError when there is no such block.
        """
        if any(block not in (-1, self.depth - 1) for block in blocks):
            raise ValueError(
                f"of {self.in_words(self.model)} there is the {self.last} only, found blocks {list(blocks)}"
            )
        return [self(images)] * len(blocks)

    def check_native(self, images: Tensor) -> None:
        """Raise ValueError when images are not of the size that it was built for."""
        if (size := tuple(images.shape[-2:])) != self.image_size:
            raise ValueError(
                f"'{self.model}' was built for images of {self.image_size} pixels, found {size}: load it with "
                "image_size="
            )

    def attention(self, images: Tensor) -> Tensor:
        """Attention maps of the last block for images [B, C, H, W]: [B, heads, P + N, P + N], rows sum to 1.

        Row 0 is where the class token looks; columns are prefix tokens, then patches row-major (DINO's and iBOT's
        `get_last_selfattention`). Raises ValueError when it has no attention whose maps are known.
        """
        raise ValueError(f"{self.in_words(self.model)} has no attention. Use a vit_* or beit_* model.")

    def looks(self, images: Tensor, tokens: Tokens) -> tuple[Tensor, str] | None:
        """Attention over the patches [B, heads, N] of images whose `forward` gave `tokens`, and whose it is, in words;
        None = it has none that can be shown."""
        return None

    def layers(self, images: Tensor, drop: Hidden = None) -> Tokens:
        """As `forward`, with the tokens of all blocks in `Tokens.layers`. Only where `layered`."""
        raise NotImplementedError

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """The depth of a timm model's parameter, by name (layer decay, gradual unfreezing): 0 = embeddings or stem,
        i = block or stage i from 1, `depth` + 1 = everything above, such as a head."""

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        """Initialise anew as a method's code does (`unlabeled.nn.init`); networks that it does not know stay as timm
        begins them."""

    def configure_(self, fields: Mapping[str, Any]) -> None:
        """Apply the fields of a recipe that are no arguments of timm."""

    @abstractmethod
    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        """The arguments of `create` for a classifier on this encoder, which may stay `frozen`: `pool` is one of
        `pools`, `size` the (height, width) of its images."""


def fit_channels(weights: Tensors, model: Any) -> Tensors:
    """Weights whose first convolution is summed or repeated over channels (timm's rule) to fit a timm model. Raises
    UserError when other channels than RGB's are to be fitted."""
    from timm.models._manipulate import adapt_input_conv

    fitted, told = dict(weights), model.pretrained_cfg["first_conv"]
    for layer in (told,) if isinstance(told, str) else told or ():
        first = f"{layer}.weight"
        found, channels = weights[first].shape[1], model.get_parameter(first).shape[1]
        if found not in (3, channels):
            raise UserError(
                f"the encoder sees {found} channels, pictures have {channels}. Only RGB's can be fitted: use one."
            )
        if found != channels:
            fitted[first] = adapt_input_conv(channels, weights[first])
    return fitted


def for_timm(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `create` that timm takes: all but the eps of norms."""
    return {name: value for name, value in arguments.items() if name != "norm_eps"}


@cache
def outline_of(model: str) -> Any:
    """A timm model on the meta device without a head, as its name says."""
    import timm

    with without_values():
        return timm.create_model(model, num_classes=0)


@cache
def module_of(model: str) -> str:
    """timm's module of a model, such as `resnet`; empty where timm has none of this name."""
    import timm

    name = model.split(".")[0]
    return timm.model_entrypoint(name).__module__.rpartition(".")[2] if timm.is_model(name) else ""
