"""Networks outside timm: any `nn.Module` of a user, named by the import path of the function that builds it.

The output is a map, a vector or a sequence of tokens, see `Reading`. Its patches can be neither dropped nor replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import TIMM_POOLS, Encoder, Fill, Hidden, InTimm, Pool, Tensors, Tokens
from unlabeled.backbone.outside import Plain, Probe, Reading, build, builder, is_path, probe, stages
from unlabeled.nn.batchnorm import BatchNorm, synchronise_
from unlabeled.nn.positions import Grid, Interpolation

FIELDS = ("model", "patch_size", "channels", "output", "layer", "prefix", "arguments")  # of recipes
FOUND = 1  # `patch_size` of a recipe that leaves it to the probe


class Module(Encoder):
    """Wraps a network of a user as its code builds it; names and values of the state dict are those of the user.

    A patch is the total stride, in pixels; that of a vector is the image. Batch normalisation sees the global batch.
    Parameters that do not reach the output, such as a head behind `layer`, do not learn.
    """

    resnet_heads: ClassVar[bool] = True
    drops_paths: ClassVar[bool] = False
    last: ClassVar[str] = "last output"
    noun: ClassVar[str] = "the network "
    exported: ClassVar[Mapping[str, Any]] = {
        "patch_size": (int | None, Field(None, ge=1, le=1024)),
        "output": (Literal["map", "vector", "tokens"] | None, None),
        "layer": (Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=200)] | None, None),
        "prefix": (int, Field(0, ge=0, le=256)),
        "arguments": (dict[str, Plain], {}),
    }
    blocks_in_python: ClassVar[str] = (
        "from unlabeled import load_encoder\ntokens = load_encoder('PACKAGE.MODULE:NAME:THIS_FOLDER')(images)\n"
        "blocks = [(tokens.patches, tokens.prefix)]"
    )
    readable = 1

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        nn.Module.__init__(self)
        self.vit, self.model, self.arguments, self.interpolation = vit, model, dict(arguments), interpolation
        self.reading, self.channels, found = reading(arguments), arguments["in_chans"], probed(model, arguments)
        self.width, self.native_grid, self.num_prefix = found.width, found.grid, self.reading.prefix
        self.patch_size = max(1, round(self.image_size[0] / found.grid[0]))
        self.batch_dependent = any(isinstance(part, BatchNorm) for part in vit.modules())
        self._stages = stages(vit, found.unused)

    @classmethod
    def claims(cls, model: str) -> int:
        return 9 if is_path(model) else 0

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        builder(model)
        return FOUND

    @classmethod
    def sized(cls, model: str) -> bool:
        return False

    @classmethod
    def summary(cls, fields: Mapping[str, Any]) -> str:
        layer = f"its {fields['layer']}" if fields["layer"] else "its output"
        return f"{layer} read as {fields['output'] or 'it is'}"

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        if name not in FIELDS and changed:
            words = cls.in_words(others["model"])
            raise ValueError(f"{words} has no {name} of ours: leave it out, or set encoder.arguments; found {value}")

    @classmethod
    def check_size(cls, model: str, arguments: Mapping[str, Any]) -> None:
        probed(model, arguments)

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        return blocks == 1

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = {name: fields[name] for name in ("output", "layer", "prefix", "arguments") if fields[name]}
        return told if fields["patch_size"] == FOUND else {**told, "patch_size": fields["patch_size"]}

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        raise NotImplementedError("timm has no such networks")

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        if drop_path:
            raise ValueError(f"{cls.in_words(model)} drops paths by its own code alone: set drop_path=0.")
        found = probed(model, arguments)
        network = build(model, arguments.get("arguments", {}))
        for name in found.unused:
            network.get_parameter(name).requires_grad_(False)
        synchronise_(network)
        return Pooled(network, model, arguments, found.width, classes) if classes else network

    @classmethod
    def from_export(cls, config: Mapping[str, Any]) -> nn.Module:
        size = config["pretrained_cfg"]["input_size"][1:]
        arguments = {**config["model_args"], "img_size": size}
        network = cls.create(config["architecture"], arguments)
        return Pooled(network, config["architecture"], arguments, config["num_features"], config["num_classes"])

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        told = {name: value for name, value in arguments.items() if name != "img_size"}
        if pool in TIMM_POOLS:
            told["global_pool"] = TIMM_POOLS[pool]
        default = "token" if arguments.get("prefix") else "avg"
        return InTimm(told.setdefault("global_pool", default), told, list(probed(model, arguments).grid))

    @classmethod
    def layers_in_timm(cls, model: str) -> tuple[Any, Any]:
        return None, "linear_head"

    @classmethod
    def address(cls, model: str, folder: str) -> str:
        return f"{model}:{folder}"

    @classmethod
    def loaded_by(cls, model: str, folder: str) -> str:
        return f"its address is {cls.address(model, folder)}"

    @classmethod
    def loading(cls, model: str, arguments: Mapping[str, Any], headed: bool = False, told: str = "") -> str:
        module, _, name = model.partition(":")
        told = ", ".join(f"{key}={value!r}" for key, value in arguments.get("arguments", {}).items())
        first = name.partition(".")[0]
        weights = "weights = load_file('THIS_FOLDER/model.safetensors')\n"
        if headed:
            weights += "head = {name: weights.pop(name) for name in ('linear_head.weight', 'linear_head.bias')}\n"
            weights += "weights = {name.removeprefix('network.'): tensor for name, tensor in weights.items()}\n"
        return (
            f"# timm cannot load this network: its code is {module}\nfrom safetensors.torch import load_file\n"
            f"from {module} import {first}\nmodel = {name}({told})\n{weights}model.load_state_dict(weights)\n"
            f"# the commands of unlabeled take the address {model}:THIS_FOLDER"
        )

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        return cls.named_for(weights, model)

    @classmethod
    def named_for(cls, weights: Tensors, model: Any) -> Tensors:
        if not isinstance(model, Pooled) or weights.keys() <= model.state_dict().keys():
            return dict(weights)
        return {f"network.{name}": tensor for name, tensor in weights.items()}

    @classmethod
    def of_classifier(cls, weights: Tensors) -> Tensors:
        return {name.removeprefix("network."): tensor for name, tensor in weights.items()}

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        return [model.forward_features(images)]

    @property
    def image_size(self) -> Grid:
        height, width = self.arguments["img_size"]
        return height, width

    @property
    def depth(self) -> int:
        return max(self._stages.values())

    @property
    def has_class_token(self) -> bool:
        return self.num_prefix > 0

    @property
    def pools(self) -> tuple[str, ...]:
        return (*(["cls"] if self.num_prefix else []), "mean", "mean_max")

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if drop is not None or replace is not None:
            raise ValueError(f"{self.in_words(self.model)} cannot drop or replace patches. Use a vit_* model.")
        size = (images.shape[-2], images.shape[-1])
        if size != self.image_size:  # an error in words
            probed(self.model, {**self.arguments, "img_size": size})
        return self.reading(self.vit, images)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The last map alone, see `Encoder`."""
        tokens = self(images)
        return [tokens.patches.mT.unflatten(2, tokens.grid)]

    def fields(self) -> dict[str, Any]:
        told = {name: self.arguments[name] for name in FIELDS if name in self.arguments}
        return {"model": self.model, "channels": self.channels, **told}

    def layer_of(self, name: str) -> int:
        return self._stages.get(name, self._stages.get(name.removeprefix("network."), self.depth + 1))

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        return {**self.arguments, "global_pool": TIMM_POOLS[pool], "img_size": list(size)}


class Pooled(nn.Module):
    """A network of a user, its tokens pooled to one vector and, for `classes`, a linear head, as timm's models have.

    Its weights are `network.*`, under the names of the user, and `linear_head.*`.
    """

    def __init__(
        self, network: nn.Module, model: str, arguments: Mapping[str, Any], width: int, classes: int = 0
    ) -> None:
        super().__init__()
        self.network, self.reading = network, reading(arguments)
        self.num_features = self.head_hidden_size = width
        self.num_classes, self.global_pool = classes, arguments.get("global_pool", "avg")
        self.linear_head = nn.Linear(width, classes) if classes else nn.Identity()
        self.pretrained_cfg = {"architecture": model, "classifier": "linear_head", "first_conv": None}

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.linear_head

    def forward_features(self, images: Tensor) -> Tokens:
        """Tokens of images [B, C, H, W]."""
        return self.reading(self.network, images)

    def forward_head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Class scores [B, classes] of tokens; with `pre_logits` their pooled vector [B, D]."""
        if self.global_pool == "token":
            pooled = tokens.pool("cls")
        elif self.global_pool == "avgmax":
            pooled = 0.5 * (tokens.pool("mean") + tokens.patches.amax(1))
        else:
            pooled = tokens.pool("mean")
        return pooled if pre_logits else cast("Tensor", self.linear_head(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of images [B, C, H, W], or their pooled vectors where there is no head."""
        return self.forward_head(self.forward_features(images))


def reading(arguments: Mapping[str, Any]) -> Reading:
    """How the output is read, from the arguments of `Module.create`."""
    names = ("output", "layer", "prefix", "patch_size")
    output, layer, prefix, patch = (arguments.get(name) for name in names)
    return Reading(output, layer, prefix or 0, patch)


def probed(model: str, arguments: Mapping[str, Any]) -> Probe:
    """Facts about the network that `Module.create` builds. Raises UserError when it cannot be an encoder."""
    height, width = arguments["img_size"]
    own = arguments.get("arguments", {})
    return probe(model, own, reading(arguments), arguments["in_chans"], (height, width))
