"""What the parity tests of the distilling methods share: heads and networks of official shapes and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from parity.golden import Golden, Settings, assert_close
from parity.vit import FORWARD, encoder_config, heads_in, shapes_under, use_eps, without_keys
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.weights import import_official
from unlabeled.data.batch.batch import Batch
from unlabeled.nn.curves import Temperature
from unlabeled.nn.heads import DistillHead, HeadConfig
from unlabeled.pretrain.method import Method, Output, Progress
from unlabeled.train.optim import clip_gradients, param_groups

Tensors = Mapping[str, Tensor]
START = Progress(0, 10, 0.0, 10.0)


class HeadShape(NamedTuple):
    """What official weights of a head show.

    Attributes:
        width, hidden, bottleneck, layers: of its MLP; bottleneck 0 = none.
        prototypes: size of the last layer.
        patch_prototypes: size of the patches' own last layer; None = it is the same one.
        norm, bias: whether there is batch normalisation, and biases.
        last: number of the MLP's last linear layer.
    """

    width: int
    hidden: int
    bottleneck: int
    layers: int
    prototypes: int
    patch_prototypes: int | None
    norm: bool
    bias: bool
    last: int

    def config(self, settings: Settings) -> HeadConfig:
        """Our settings."""
        return HeadConfig(
            prototypes=self.prototypes,
            hidden=self.hidden,
            bottleneck=self.bottleneck,
            layers=self.layers,
            freeze_gain=settings.get("norm_last_layer", True),
            bias=self.bias,
        )

    def build(self, freeze_gain: bool) -> DistillHead:
        """Our head."""
        return DistillHead(
            self.width,
            self.prototypes,
            self.hidden,
            self.bottleneck,
            self.layers,
            freeze_gain,
            self.patch_prototypes,
            self.norm,
            self.bias,
        )


def head_shape(weights: Tensors) -> HeadShape:
    """The shape of a head by its official weights; a shared last layer is there twice, under two names."""
    bare = "mlp.weight" in weights  # officially, one layer alone is no sequence
    linears = sorted(int(n.split(".")[1]) for n, t in weights.items() if is_linear(n, t)) or [0]
    first, last = ("mlp.weight",) * 2 if bare else (f"mlp.{i}.weight" for i in (linears[0], linears[-1]))
    rows, width = weights[first].shape
    bottleneck = weights["last_layer.weight_v"].shape[1] if "last_layer.weight_v" in weights else 0
    one, two = ("last_layer.weight_v", "last_layer2.weight_v") if bottleneck else (last, "mlp2.weight")
    own = two in weights and not torch.equal(weights[one], weights[two])
    return HeadShape(
        width=width,
        hidden=rows if len(linears) > 1 else 1,
        bottleneck=bottleneck,
        layers=len(linears),
        prototypes=len(weights[one]),
        patch_prototypes=len(weights[two]) if own else None,
        norm=any(name.endswith("running_mean") for name in weights),
        bias=first.replace("weight", "bias") in weights,
        last=linears[-1],
    )


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether a weight is of a linear layer in the MLP, not of a norm."""
    return name.startswith("mlp.") and name.count(".") == 2 and name.endswith(".weight") and tensor.ndim == 2


def head_name(shape: HeadShape, name: str) -> str:
    """Our name of an official one; a shared last layer has two names there and one here."""
    if name in ("mlp.weight", "mlp.bias"):
        name = name.replace("mlp.", "mlp.0.")
    if name.startswith(("last_layer2.", "mlp2.")):
        return f"{'last' if shape.patch_prototypes is None else 'patch'}_layer.{name.split('.', 1)[1]}"
    if not shape.bottleneck and name.startswith(f"mlp.{shape.last}."):
        return name.replace(f"mlp.{shape.last}.", "last_layer.")
    return name


def head_weights(shape: HeadShape, weights: Tensors) -> dict[str, Tensor]:
    """Official parameters or buffers of a head under our names."""
    return {head_name(shape, name): tensor for name, tensor in weights.items()}


def build_head(weights: Tensors, settings: Settings) -> DistillHead:
    """Our head with official weights."""
    shape = head_shape(weights)
    head = shape.build(settings.get("norm_last_layer", True))
    head.load_state_dict(head_weights(shape, weights))
    return head.train()


def before_norms(weights: Tensors) -> list[str]:
    """Biases in front of batch normalisation, which move nothing."""
    norms = {int(name.split(".")[1]) for name in weights if name.endswith("running_mean")}
    return [f"mlp.{number - 1}.bias" for number in norms]


def teacher_temperature(settings: Settings, start: str, end: str, epochs: int, final: float = 0.04) -> Temperature:
    """A warm-up; what the settings leave out is as in the official defaults."""
    return Temperature(
        settings.get(start, 0.04), settings.get(end, final), settings.get("warmup_teacher_temp_epochs", epochs)
    )


# ---------------------------------------------------------------- a whole method


class Networks(NamedTuple):
    """The official student and teacher of a file.

    Attributes:
        golden: the file.
        head, teacher_head: shapes of their heads, by the weights.
    """

    golden: Golden
    head: HeadShape
    teacher_head: HeadShape

    @property
    def settings(self) -> Settings:
        return self.golden.config

    @property
    def step(self) -> Settings:
        return self.settings.get("step", self.settings)

    def head_config(self) -> HeadConfig:
        return self.head.config(self.settings.get("head", self.settings))

    def encoder(self) -> EncoderConfig:
        shapes = shapes_under(self.golden, "sd_student/backbone.")
        settings = Settings({**self.settings, "num_heads": self.heads})
        return encoder_config(shapes, settings, positions="learned", interpolation="scale")

    @property
    def heads(self) -> int:
        """Attention heads, of which attention maps tell too."""
        maps = self.golden.found(r"out/(last_selfattention\w*)$")
        known = self.golden.shape(f"out/{maps[0]}")[1] if maps else None
        return known or heads_in(self.settings, self.golden.shape("sd_student/backbone.cls_token")[-1])

    @property
    def side(self) -> int:
        """The side of the pictures that positions are stored for, which crops need not have."""
        _, tokens, _ = self.golden.shape("sd_student/backbone.pos_embed")
        return round((tokens - 1) ** 0.5) * self.golden.shape("sd_student/backbone.patch_embed.proj.weight")[-1]

    def ours(self, name: str, encoder: str = "encoder", head: str = "head") -> str:
        """Our name of an official parameter of a student or teacher."""
        part, rest = name.split(".", 1)
        if part == "backbone":
            return "mask_token" if rest == "masked_embed" else f"{encoder}.vit.{rest}"
        return f"{head}.{head_name(getattr(self, head), rest)}"

    def crops(self) -> list[int]:
        """Numbers of the crops, global ones first."""
        return sorted(int(number) for number in self.golden.found(r"in/crop(\d+)$"))


def networks(golden: Golden) -> Networks:
    return Networks(golden, *(head_shape(golden.under(f"{side}/head", ".")) for side in ("sd_student", "sd_teacher")))


SIDES = (("student", ("encoder", "head")), ("teacher", ("teacher", "teacher_head")))


def load_both(method: Method, official: Networks) -> None:
    """Official student and teacher, and centres."""
    golden, state = official.golden, method.state_dict()
    left = set(state)
    for which, parts in SIDES:
        for name, tensor in golden.under(f"sd_{which}").items():
            mine = official.ours(name, *parts)
            assert state[mine].shape == tensor.shape, name
            state[mine].copy_(tensor)
            left.discard(mine)
    for name in [name for name in left if "centre" in name]:
        state[name].copy_(golden["in/center2" if name.startswith("patch_") else "in/center"].flatten())
        left.discard(name)
    assert not left, f"the official set has no {sorted(left)}"


def imported_backbone(
    method: str, official: Networks, checkpoint: dict[str, Any], home: Path, **options: Any
) -> nn.Module:
    """The backbone of a method's checkpoint as timm alone loads it, from `home/out`."""
    torch.save(checkpoint, home / "official.pth")
    import_official(method, home / "official.pth", home / "out", official.heads, **options)
    backbone: nn.Module = timm.create_model(f"local-dir:{home / 'out'}", pretrained=True).eval()
    use_eps(backbone, official.settings)
    return backbone


def one_step(method: Method, batch: Batch, step: Settings, epoch: int) -> Output:
    """Forward, backward, clip, AdamW and what follows it, as the engine runs them at the first step of `epoch`.

    The set gives a momentum, not a schedule: at step 0 it is the schedule's start.
    """
    epochs = step.get("epochs", 100)
    progress = Progress(0, epochs, float(epoch), float(epochs))
    optimizer = torch.optim.AdamW(param_groups(method, step.get("weight_decay", 0.04)), lr=step["lr"])
    output = method(batch, progress)
    output.loss.backward()
    clip_gradients(method, step.get("clip_grad", 3.0) or None, "tensor")
    for parameter in method.frozen(progress):
        parameter.grad = None
    optimizer.step()
    method.after_step(progress)
    return output


def assert_after(method: Method, official: Networks, prefix: str) -> None:
    """Student and teacher after a step, as far as the set has them.

    The key third of qkv biases is left out: its gradient is rounding noise, of which Adam makes a step. Where gradients
    are as small as Adam's eps, a tenth of a step is allowed.
    """
    state, step = method.state_dict(), official.step
    tenth = 0.1 * step["lr"]
    allowed = {"student": tenth, "teacher": (1 - step.get("momentum_teacher", 0.996)) * tenth + 1e-7}
    for which, parts in SIDES:
        for name, tensor in official.golden.some(f"{prefix}/{which}").items():
            ours = state[official.ours(name, *parts)]
            if name.endswith("qkv.bias"):
                ours, tensor = without_keys(ours), without_keys(tensor)
            error = (ours - tensor).abs().max().item()
            assert error <= allowed[which], f"{which} {name}: off by {error:.1e}, allowed {allowed[which]:.0e}"


def assert_norms(gradients: list[Tensor], golden: Golden, key: str) -> None:
    """Norms of gradients, whatever their order: the set names none, or in another file."""
    norms = torch.stack([gradient.norm() for gradient in gradients]).sort().values
    assert_close(norms, golden[key].to(norms.dtype).sort().values, 2 * FORWARD, key)


def any_gradients(method: Method) -> list[Tensor]:
    return [p.grad for p in method.parameters() if p.grad is not None]
