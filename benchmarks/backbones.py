"""One network of every module of timm, from the first feature to a fine-tuned classifier.

    python benchmarks/backbones.py [--modules resnet,swin_transformer] [--json]

The smallest variant of each module, at the smallest size of pictures that it takes, with random weights:

    features   those of timm alone, `forward_head(forward_features(x), pre_logits=True)`, to 1e-5 of the largest
    export     the folder loaded by timm alone gives the same features, and so does this package
    pretrain   two steps of SimCLR: finite losses, and a gradient for every parameter that learns
    finetune   two steps of a classifier, all layers learning at rates by depth
    layers     numbered from 0 (stem) without a gap, and within every part in the order of its parameters

A module that fails is listed with the words that a user gets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from common import finish, table
from torch import Tensor, nn

from unlabeled.backbone.build import family_of
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.errors import first_line
from unlabeled.nn.heads import mlp
from unlabeled.pretrain.method import Method, Progress
from unlabeled.pretrain.methods import simclr
from unlabeled.train.optim import param_groups
from unlabeled.transfer.strategies import differential
from unlabeled.transfer.tasks import classify

SIDES = (32, 64, 96, 128)  # pixels; after them the network's own size
TOLERANCE = 1e-5
ROWS, CLASSES = 2, 2
START = Progress(0, 2, 0.0, 1.0)

# used most by downloads and by papers that pretrain: in the suite, each in its smallest variant, and where a recipe can
# say so smaller still
SMALL = {"depth": 2, "width": 48, "heads": 2}
STAGES = {"depth": (1, 1, 2, 1), "width": 16, "heads": (1, 2, 4, 8)}
USUAL: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "vit_tiny_patch16_dinov3_qkvb": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "swin_tiny_patch4_window7_224": STAGES,
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "deit_tiny_distilled_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "regnetx_002": {},
    "test_nfnet": {},
    "edgenext_xx_small": {},
    "xcit_nano_12_p16_224": {},
    "poolformerv2_s12": {},
    "hiera_tiny_224": {**STAGES, "heads": 1},
    "beit_base_patch16_224": SMALL,
    "test_coatnet": {},
    "pvt_v2_b0": {},
}


@dataclass
class Walk:
    """One network: its size, family and pooling, and what went wrong, by check."""

    module: str
    model: str
    side: int = 0
    family: str = ""
    pool: str = ""
    seconds: float = 0.0
    wrong: dict[str, str] = field(default_factory=dict)


def smallest(module: str) -> str:
    """The variant of a module with the fewest parameters."""
    return min(timm.list_models(module=module), key=lambda name: (_parameters(name), name))


@cache
def _parameters(model: str) -> float:
    with torch.device("meta"):
        try:
            return sum(p.numel() for p in timm.create_model(model).parameters())
        except Exception:  # some need packages that are not installed
            return float("inf")


def walk(model: str, module: str = "", **fields: Any) -> Walk:
    """Check one network, with `fields` of a recipe, and name what goes wrong."""
    found, begin = Walk(module, model), time.perf_counter()
    try:
        encoder = built(EncoderConfig(model=model, **fields))
    except Exception as error:
        found.wrong["encode"] = first_line(error)
        return found
    found.side, found.family, found.pool = encoder.image_size[0], family_of(model).__name__, encoder.default_pool
    images = torch.randn(ROWS, encoder.channels, *encoder.image_size, generator=torch.Generator().manual_seed(1))
    wrong = {name: tried(check, encoder, images) for name, check in CHECKS.items()}
    found.wrong = {name: words for name, words in wrong.items() if words}
    found.seconds = time.perf_counter() - begin
    return found


def tried(check: Callable[[Encoder, Tensor], None], encoder: Encoder, images: Tensor) -> str:
    """What goes wrong in a check, in words; empty = nothing."""
    try:
        check(encoder, images)
    except Exception as error:  # whatever it is, it goes into the table
        return first_line(error) or type(error).__name__
    return ""


def built(config: EncoderConfig) -> Encoder:
    """An encoder at the smallest size that its network takes, with running statistics that are not those of a new one.

    Raises the error of its own size where it takes none.
    """
    torch.manual_seed(0)
    told = timm.get_pretrained_cfg(config.model)
    own = told.input_size[1], told.input_size[2]
    least = (told.min_input_size or own)[-1]
    for size in [(side, side) for side in sorted({*SIDES, least}) if side < own[0]]:
        try:
            encoder = config.build(size).eval()
            with torch.no_grad():
                encoder(torch.zeros(2, encoder.channels, *size))
                break
        except Exception:  # too small, or no multiple of its windows
            continue
    else:
        encoder = config.build(own).eval()
    for name, buffer in encoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, *((0.5, 2.0) if name.endswith("var") else (-0.3, 0.3)))
    return encoder


@torch.no_grad()
def features(encoder: Encoder, images: Tensor) -> None:
    """Against a timm model of its own with the same weights, which pools as the encoder does."""
    told = type(encoder).in_timm(encoder.model, encoder.arguments, encoder.default_pool)
    alone = timm.create_model(encoder.model, num_classes=0, **told.arguments)
    alone.load_state_dict(encoder.vit.state_dict())
    alone.eval()
    expected = alone.forward_head(alone.forward_features(images), pre_logits=True)
    _close(encoder.eval().feature(images), expected)
    assert encoder.stages(images)[0].ndim == 4, "stages are no maps"


@torch.no_grad()
def export(encoder: Encoder, images: Tensor) -> None:
    """Against the folder as timm and this package load it."""
    with tempfile.TemporaryDirectory() as folder:
        export_encoder(Path(folder), encoder, IMAGENET, "# card\n", {})
        expected = encoder.eval().feature(images)
        _close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), expected)
        _close(load_encoder(folder).eval().feature(images), expected)


def pretrain(encoder: Encoder, images: Tensor) -> None:
    """Two steps of SimCLR."""
    method = simclr.SimCLR(encoder, mlp((encoder.feature_width, 16, 8)), temperature=0.1)
    _steps(method, Batch([ViewBatch(torch.stack([images, images.flip(-1)]), None)], *_numbers()))


def finetune(encoder: Encoder, images: Tensor) -> None:
    """Two steps of a classifier, the lower layers at lower rates."""
    strategy = differential.Config(layer_decay=0.7)
    config = classify.Config(strategy=strategy, pool=encoder.default_pool, view=View(size=list(encoder.image_size)))
    _steps(
        classify.Classifier(encoder, config, [2] * CLASSES), Batch([ViewBatch(images.unsqueeze(0), None)], *_numbers())
    )


def layers(encoder: Encoder, images: Tensor) -> None:
    """Numbers of layers, parameter by parameter."""
    found = {name: encoder.layer_of(name) for name, _ in encoder.vit.named_parameters()}
    assert set(found.values()) >= set(range(encoder.depth + 1)), f"a gap in {sorted(set(found.values()))}"
    assert max(found.values()) <= encoder.depth + 1
    for part in {name.partition(".")[0] for name in found}:
        inside = [layer for name, layer in found.items() if name.startswith(f"{part}.")]
        assert inside == sorted(inside), f"layers of {part} are out of order"


CHECKS: dict[str, Callable[[Encoder, Tensor], None]] = {
    "features": features,
    "export": export,
    "pretrain": pretrain,
    "finetune": finetune,
    "layers": layers,
}


def _numbers() -> tuple[Tensor, Tensor]:
    return torch.arange(ROWS) % CLASSES, torch.arange(ROWS)


def _close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape, f"{list(found.shape)}, expected {list(expected.shape)}"
    gap = (found - expected).abs().max().item() / expected.abs().max().clamp(min=1e-9).item()
    assert gap <= TOLERANCE, f"differs by {gap:.1e} of the largest"


def _steps(method: Method, batch: Batch) -> None:
    optimizer = torch.optim.SGD(param_groups(method.train(), 0.0), lr=1e-4)
    for _ in range(2):
        loss = method(batch, START).loss
        assert loss.isfinite(), f"the loss is {loss.item()}"
        loss.backward()
        if without := [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]:
            raise AssertionError(f"{len(without)} parameters get no gradient, such as {without[0]}")
        optimizer.step()
        optimizer.zero_grad()


def _row(one: Walk) -> list[str]:
    wrong = "; ".join(f"{check}: {words}" for check, words in one.wrong.items())
    return [one.module, one.model, str(one.side), one.family, one.pool, wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", help="of timm, separated by commas; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args()
    modules = chosen.modules.split(",") if chosen.modules else timm.list_modules()
    found = []
    for module in modules:
        found.append(one := walk(smallest(module), module))
        print(f"{module:28} {one.model:42} {one.side:4} {one.seconds:6.1f} s  {one.wrong or 'passed'}", flush=True)
    rows = [_row(one) for one in found]
    passed = sum(not one.wrong for one in found)
    print(table(["module of timm", "network", "pixels", "family", "pooling", "what fails"], rows))
    print(f"{passed} of {len(found)} modules pass ({100 * passed / len(found):.1f} %)")
    finish(chosen, {"modules": [asdict(one) for one in found]})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
