"""The recipe's `encoder:` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from unlabeled.backbone.build import build_encoder, families, family_of
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.backbone.outside import Plain, is_path
from unlabeled.nn.positions import Grid, Interpolation

Blocks = Annotated[int, Field(ge=1, le=128)]
Heads = Annotated[int, Field(ge=1, le=256)]
# strict validation of what another validator has seen takes no lists for tuples
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Few = Field(min_length=1, max_length=8)
Positions = Literal["sincos", "sincos_rows", "learned", "relative", "relative_learned", "rope", "rope_learned"]
OUTSIDE = ("output", "layer", "prefix", "arguments")  # fields of networks outside timm


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """A timm model by name, and the settings that a recipe may change; or a network outside timm by its import path.

    A CNN has `stride`, `channels`, `drop_path` and `zero_init`; the others belong to transformers and must be left out.
    A swin_* or hiera_* has stages. A network outside timm has `channels`, `patch_size` and the last four.
    """

    model: str = Field(
        "vit_base_patch16_224",
        description="a timm model: vit_*, beit_* or a CNN such as resnet50; or PACKAGE.MODULE:NAME, a function that "
        "returns a network of your own",
    )
    stride: Literal[8, 16] | None = Field(
        None,
        description="total stride of a CNN, pixels, for small crops: later stages keep the size of their maps, by "
        "dilated convolutions; null = the timm model's, mostly 32",
    )
    patch_size: int = Field(
        default_factory=lambda said: (
            said.get("stride") or (family_of(said["model"]).patch_size_of(said["model"]) if "model" in said else 16)
        ),
        ge=1,
        le=1024,
        description="side of a patch, pixels; unless set, the timm model's; of a CNN or a swin_* the total stride; of "
        "a network outside timm 1 = found",
    )
    width: int | None = Field(
        None,
        ge=4,
        le=16384,
        description="token width, of the first stage where there are stages; null = the timm model's",
    )
    depth: Blocks | Annotated[tuple[Blocks, ...], FromList, Few] | None = Field(
        None, description="number of blocks, of each stage where there are stages; null = the timm model's"
    )
    heads: Heads | Annotated[tuple[Heads, ...], FromList, Few] | None = Field(
        None, description="attention heads, of each stage where there are stages; null = the timm model's"
    )
    mlp_ratio: float | None = Field(
        None,
        ge=0.25,
        le=64,
        description="width of a block's MLP over the token width; null = the timm model's, mostly 4",
    )
    qkv_bias: bool = Field(True, description="biases on queries, keys and values; a beit_* has none on keys")
    norm_eps: float | None = Field(
        None, gt=0, le=0.1, description="added to the variance in layer norms; null = the timm model's, mostly 1e-6"
    )
    channels: int = Field(3, ge=1, le=16, description="input channels, as many as data.mean has values")
    positions: Positions = Field(
        default_factory=lambda said: (
            family_of(said["model"]).default_positions(said["model"]) if "model" in said else "sincos"
        ),
        validate_default=True,
        description="fixed 2-D sine-cosine positions (MAE's, or MoCo v3's: rows first), learned ones, a beit_*'s "
        "relative ones, or rotary ones (DINOv3, EVA-02), alone or with learned ones; unless set, the timm model's",
    )
    relative_tables: Literal["shared", "blocks", "both"] = Field(
        "shared", description="of relative positions: one table that all blocks share, one in every block, or both"
    )
    interpolation: Interpolation = Field(
        "size", description="how positions reach other crop sizes: by target size, or by scale (DINO, iBOT, DINOv2)"
    )
    init_values: float | None = Field(
        None, ge=0, description="layer scale begins here; 0 = none, null = the timm model's"
    )
    registers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="register tokens; prefix tokens then have no positions; 0 = none, null = the timm model's",
    )
    rope_rescale: float | None = Field(
        None,
        gt=1,
        le=16,
        description="of a *_dinov3, in training: coordinates of rotary positions times one factor per forward, "
        "log-uniform in [1 / this, this] (DINOv3: 2); null = none",
    )
    window: int | None = Field(
        None, ge=1, le=128, description="side of a swin's windows, tokens; null = the timm model's"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block, growing from 0")
    drop_path_uniform: bool = Field(False, description="drop-path rate of all blocks alike (DINOv2), not growing")
    drop_path_skip: bool = Field(
        False,
        description="images whose path is dropped are left out of its computation, a fixed number of each batch "
        "(DINOv2): faster, in blocks with a rate above 0.1; draws other images than without it",
    )
    zero_init: bool | None = Field(
        None,
        description="of a CNN: whether the last norm of every residual block begins at 0, so that the block begins as "
        "the identity; null = the timm model's, of a ResNet true. Better in long runs, worse in short ones",
    )
    output: Literal["map", "vector", "tokens"] | None = Field(
        None,
        description="of a network outside timm: a map [B, D, H, W], a vector [B, D], or tokens [B, N, D]; null = by "
        "the number of dimensions",
    )
    layer: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        pattern=r"^\w[\w.-]*$",
        description="of a network outside timm: a name in its output, or the submodule whose output is read; null = "
        "its output",
    )
    prefix: int = Field(
        0, ge=0, le=256, description="of a network outside timm: tokens before the patches (class token, registers)"
    )
    arguments: dict[str, Plain] = Field(
        {}, description="of a network outside timm: keyword arguments of the function; numbers, switches, short names"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name_and_path(cls, given: Any) -> Any:
        """`{name: module, path: PACKAGE.MODULE:NAME}` is `{model: PACKAGE.MODULE:NAME}`."""
        if not isinstance(given, Mapping) or given.get("name") not in ("timm", "module"):
            return given
        rest = {field: value for field, value in given.items() if field not in ("name", "path")}
        if given["name"] == "timm" and "path" not in given:
            return rest
        if not is_path(str(path := given.get("path"))) or rest.get("model", path) != path:
            raise ValueError(f"name module needs a path, PACKAGE.MODULE:NAME, and no model; found path {path}")
        return {**rest, "model": path}

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        import difflib

        import timm

        if not is_path(name) and not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"timm has no model '{name}'.{hint}")
        family_of(name).patch_size_of(name)
        return name

    @field_validator("*")
    @classmethod
    def _suits_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        field = info.field_name or ""
        if (model := info.data.get("model")) is not None:
            if field in OUTSIDE and not is_path(model) and value:
                raise ValueError(f"{field} belongs to networks outside timm, '{model}' is timm's: leave it out")
            default = cls.model_fields[field].get_default(call_default_factory=True, validated_data=info.data)
            family_of(model).check_field(field, value, value != default, info.data)
        return value

    @property
    def family(self) -> type[Encoder]:
        """The class of its encoders: it answers for what they can do."""
        return family_of(self.model)

    @property
    def crop_multiple(self) -> int:
        """The number of pixels whose multiples the sides of a crop must be."""
        return self.family.crop_multiple(self.model, self.patch_size)

    @property
    def embedding_patch(self) -> int:
        """The side of the patches that are embedded, pixels; tokens may merge several of them."""
        return self.family.embedding_patch_of(self.model_dump())

    @property
    def calm(self) -> EncoderConfig:
        """The same network with nothing random in training: a teacher's."""
        return self.model_copy(update={"drop_path": 0.0, "rope_rescale": None})

    @property
    def in_words(self) -> str:
        """The model in a message."""
        return self.family.in_words(self.model)

    @property
    def summary(self) -> str:
        """Its patches and positions, in words for a plan."""
        return self.family.summary(self.model_dump())

    def require(
        self, method: str, hide: Hiding | None = None, any_size: bool = False, class_token: bool = False
    ) -> None:
        """Raise ValueError when the encoder is not fit for a method that hides patches so, has crops of any size, or
        reads a class token."""
        if hide and hide not in self.family.hides:
            *can, last = sorted((one.names for one in families().values() if hide in one.hides), reverse=True)
            how, instead = "hides", "a method that sees whole pictures such as mocov3"
            if "zero" in self.family.hides:
                instead = f"method spark, or {instead}"
            elif self.family.hides:
                how, instead = f"{hide}s", {"drop": "method simmim"}.get(hide, "method mae")
            names = f"{', '.join(can)} or {last}" if can else last
            raise ValueError(
                f"{method} {how} patches, which {self.in_words} cannot. Use a {names} model, or {instead}."
            )
        if class_token and not self.family.can_read(self.model, "cls", 1):
            raise ValueError(
                f"{method} reads a class token, which {self.in_words} has not. Use a vit_* model that has one, such as "
                "vit_base_patch16_224."
            )
        if any_size and not self.family.takes_any_size(self.model):
            raise ValueError(f"{method} needs positions for crops of any size, '{self.model}' has none. Use a vit_*.")

    def check_size(self, image_size: Grid) -> None:
        """Raise ValueError when the network is known not to take images of `image_size` (height, width) pixels."""
        self.family.check_size(self.model, self._arguments(image_size))

    def _arguments(self, image_size: Grid, pooled: bool = True) -> dict[str, Any]:
        told = self.family.arguments_of(self.model_dump(), pooled)
        return {"img_size": list(image_size), "in_chans": self.channels, **told}

    def build(self, image_size: Grid, pooled: bool = True) -> Encoder:
        """A randomly initialised encoder for images of `image_size` (height, width) pixels; without `pooled` its own
        pooling, such as an attention pool, is left out where timm can, for methods that do not read it.

        Raises ValueError when the patch size does not divide the image size, or the model cannot be wrapped.
        """
        if any(side % self.crop_multiple for side in image_size):
            raise ValueError(
                f"patch_size {self.patch_size} does not divide an image of {image_size} pixels: set one that does"
            )
        arguments = self._arguments(image_size, pooled)
        encoder = build_encoder(self.model, arguments, self.interpolation, self.drop_path)
        encoder.configure_(self.model_dump())
        return encoder
