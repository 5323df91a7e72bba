"""Swin transformers: timm's features, tokens replaced behind the embedding, windows of other sizes, layer numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.families.swin import window_of
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import fitted, load_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import dino, ibot, mae, simmim
from unlabeled.train.beginning import begin

FIRST, SECOND = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
SIZE = (32, 48)
FIELDS: dict[str, Any] = {"patch_size": 16, "width": 8, "depth": [2, 1, 2], "heads": [1, 2, 2], "window": 4}
START = Progress(0, 1, 0.0, 1.0)


def make(model: str = FIRST, size: tuple[int, int] = SIZE, **changed: Any) -> Encoder:
    """With weights at which every part shows."""
    torch.manual_seed(0)
    encoder = EncoderConfig.model_validate({"model": model, **FIELDS, **changed}).build(size)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def images_of(encoder: Encoder, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, *encoder.image_size, generator=torch.Generator().manual_seed(1))


def some_hidden(rows: int, patches: int) -> PatchMask:
    order = torch.rand(rows, patches, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    keep, drop = order[:, : patches // 2], order[:, patches // 2 :]
    return PatchMask(torch.zeros(rows, patches, dtype=torch.bool).scatter(1, drop, True), keep, drop)


@pytest.mark.parametrize("model", [FIRST, SECOND])
def test_features_are_timms(model: str) -> None:
    encoder = make(model)
    images, tokens = images_of(encoder), encoder(images_of(encoder))
    raw = encoder.vit.forward_features(images)
    torch.testing.assert_close(tokens.patches, raw.flatten(1, 2))
    torch.testing.assert_close(encoder.own(tokens), encoder.vit.forward_head(raw, pre_logits=True))
    torch.testing.assert_close(encoder.feature(images), encoder.vit(images), rtol=0, atol=1e-5)
    assert (tokens.grid, encoder.native_grid, encoder.patch_size, encoder.default_pool) == ((2, 3), (2, 3), 16, "mean")
    assert [list(one.shape[1:]) for one in encoder.stages(images)] == [[8, 8, 12], [16, 4, 6], [32, 2, 3]]


@pytest.mark.parametrize("model", [FIRST, SECOND])
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_hidden_tokens_are_replaced_behind_the_embedding(model: str, patch: int) -> None:
    """Whatever the patches of the mask, timm's tokens of 4 px are replaced one by one."""
    encoder, token = make(model), torch.randn(1, 1, 8)
    rows, columns = SIZE[0] // patch, SIZE[1] // patch
    images, mask = images_of(encoder), some_hidden(2, rows * columns)
    found = encoder(images, replace=mask, fill=token).patches

    def replaced(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for b, n in mask.hidden.nonzero().tolist():
            top, left = n // columns * patch // 4, n % columns * patch // 4
            embedded[b, top : top + patch // 4, left : left + patch // 4] = token[0, 0]
        return embedded

    encoder.vit.patch_embed.register_forward_hook(replaced)
    torch.testing.assert_close(found, encoder.vit.forward_features(images).flatten(1, 2))


@pytest.mark.parametrize("unit", [4, 8, 16])
def test_units_may_be_finer_than_the_output(unit: int) -> None:
    """The official loss: |x - x_rec| over hidden pixels, x_rec by pixel shuffle of the decoder's output."""
    view = View(size=SIZE, mask=RandomMask(ratio=0.5, unit=unit))
    config = simmim.Config.model_validate({"view": view, "encoder": {"model": FIRST, **FIELDS}})
    assert (config.mask_patch, config.encoder.embedding_patch) == (unit, 4)
    torch.manual_seed(0)
    model = config.build().eval()
    images = torch.randn(2, 3, *SIZE)
    mask = some_hidden(2, SIZE[0] * SIZE[1] // unit**2)
    loss = model(Batch([ViewBatch(images[None], mask.map(lambda t: t[None]))], torch.zeros(2), torch.zeros(2)), START)

    head, tokens = model.decoder.head, model.encode(images, mask)
    maps = head(tokens.patches).unflatten(2, (16 * 16, 3)).transpose(2, 3).flatten(2)  # channel first, officially
    rebuilt = nn.functional.pixel_shuffle(maps.mT.unflatten(2, tokens.grid), 16)
    hidden = mask.hidden.float().view(2, 1, SIZE[0] // unit, SIZE[1] // unit)
    pixels = hidden.repeat_interleave(unit, 2).repeat_interleave(unit, 3)
    expected = ((images - rebuilt).abs() * pixels).sum() / (pixels.sum() + 1e-5) / 3
    torch.testing.assert_close(loss.loss, expected)
    assert model.pictures(Batch([ViewBatch(images[None], mask.map(lambda t: t[None]))], images, images)).shape[1] == 3


def test_mask_token_and_weights_begin_as_officially() -> None:
    torch.manual_seed(0)
    model = simmim.Config.model_validate(
        {"view": View(size=SIZE, mask=RandomMask(unit=16)), "encoder": {"model": FIRST, **FIELDS, "width": 256}}
    ).build()
    block = model.encoder.vit.layers[2].blocks[0]
    for weight in (
        model.mask_token,
        block.attn.qkv.weight,
        block.attn.proj.weight,
        block.attn.relative_position_bias_table,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15) and weight.abs().max() > 0.04, "not cut at 1 std"
    assert model.mask_token.shape == (1, 1, 256) and not block.attn.qkv.bias.any()


def test_layers_are_numbered_as_in_simmims_fine_tuning() -> None:
    """Official `get_swin_layer`, on official names: there a merging of tokens ends its stage."""
    encoder, depths = make(), (2, 1, 2)
    numbers = {}
    for name, _ in encoder.vit.named_parameters():
        _, stage, part, *rest = name.split(".") if name.startswith("layers.") else ("", "0", "", "")
        if part == "downsample":
            numbers[name] = sum(depths[: int(stage) - 1 + 1])
        elif part == "blocks":
            numbers[name] = sum(depths[: int(stage)]) + int(rest[0]) + 1
        else:
            numbers[name] = 0 if name.startswith("patch_embed") else sum(depths) + 1
    assert {name: encoder.layer_of(name) for name in numbers} == numbers
    assert numbers["layers.1.downsample.reduction.weight"] == numbers["layers.0.blocks.1.mlp.fc1.weight"] == 2


@pytest.mark.parametrize("model", [FIRST, SECOND])
def test_another_size_takes_the_windows_of_timm(model: str) -> None:
    encoder = make(model, (64, 64))
    ours, theirs = fitted(encoder, (96, 96), 3), make(model, (64, 64)).vit
    theirs.set_input_size(img_size=(96, 96))
    assert ours.arguments["window_size"] == 6
    windows = [block.window_size for stage in theirs.layers for block in stage.blocks]
    assert [block.window_size for stage in ours.vit.layers for block in stage.blocks] == windows
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(ours.eval()(images).patches, theirs.eval().forward_features(images).flatten(1, 2))
    again = fitted(ours, (64, 64), 3)
    assert again.arguments == encoder.arguments


def test_pretraining_goes_on_at_another_size_with_the_windows_of_its_recipe(tmp_path: Path) -> None:
    encoder = make(size=(64, 64))
    export_encoder(tmp_path / "export", encoder, IMAGENET, "", {})
    for window in (4, 5):
        config = EncoderConfig.model_validate({"model": FIRST, **FIELDS, "window": window})
        begun = begin(str(tmp_path / "export"), config, (96, 96), 3, ("size",), ("method.view.size",)).encoder
        tables = fitted(encoder, (96, 96), 3, {"window_size": window}).state_dict()
        assert begun.arguments["window_size"] == window
        assert all(torch.equal(tensor, tables[name]) for name, tensor in begun.state_dict().items())


def test_windows_of_tables() -> None:
    """A square, unless the map was smaller."""
    for window, grid in (((4, 4), (8, 12)), ((2, 4), (2, 4)), ((2, 7), (2, 9)), ((7, 3), (9, 3))):
        assert window_of((2 * window[0] - 1) * (2 * window[1] - 1), grid) == window


@pytest.mark.parametrize("model", [FIRST, SECOND, "swin_s3_tiny_224"])
def test_timm_alone_loads_the_export(model: str, tmp_path: Path) -> None:
    four: dict[str, Any] = {"patch_size": 32, "depth": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": None}
    encoder = make(model, (64, 96), **four) if "s3" in model else make(model)
    export_encoder(tmp_path / "export", encoder, IMAGENET, "", {})
    alone, images = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval(), images_of(encoder)
    torch.testing.assert_close(alone(images), encoder.feature(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(load_encoder(tmp_path / "export").eval().feature(images), encoder.feature(images))
    larger = load_encoder(tmp_path / "export", image_size=(96, 128)).eval()
    assert larger.image_size == (96, 128)
    export_encoder(tmp_path / "larger", larger, IMAGENET, "", {})
    images = images_of(larger)
    torch.testing.assert_close(load_encoder(tmp_path / "larger").eval()(images).patches, larger(images).patches)


@pytest.mark.parametrize("model", [FIRST, SECOND])
def test_layers_that_lora_wraps_are_called(model: str) -> None:
    encoder, called = make(model), set()
    for owner, names in encoder.linears_(encoder.vit):
        for name in names:
            getattr(owner, name).register_forward_hook(lambda module, *_: called.add(module))
    encoder(images_of(encoder))
    assert len(called) == sum(len(names) for _, names in encoder.linears_(encoder.vit)) == 4 * encoder.depth


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"depth": 4}, r"'swin_tiny_patch4_window7_224' has stages: expected a number for each, such as \[2, 2, 6, 2\]"),
    ({"depth": [2, 2, 2], "patch_size": 18}, "patch_size 18 is the total stride.* expected a multiple of 4"),
    ({"depth": [2, 2], "heads": [1, 2, 4]}, r"expected heads for each of 2 stages, found \[1, 2, 4\]"),
    ({"width": 12, "depth": [2, 2], "heads": [5, 2]}, "5 heads do not divide a width of 12, that of stage 1"),
    ({"positions": "learned"}, "has no learned positions: expected relative"),
    ({"registers": 4}, "has no registers: leave it out, found 4"),
    ({"model": "vit_tiny_patch16_224", "depth": [2, 2]}, "has no stages: expected one number, found"),
    ({"model": "vit_tiny_patch16_224", "window": 7}, "has no windows: leave it out, found 7"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate({"model": FIRST, **fields})


def test_what_it_cannot_do_is_refused() -> None:
    encoder = make()
    images = images_of(encoder)
    with pytest.raises(ValueError, match=r"cannot drop patches\. Use a vit_\* or hiera_\*"):
        encoder(images, drop=some_hidden(2, 6))
    with pytest.raises(ValueError, match=r"built for images of \(32, 48\) pixels, found \(48, 48\)"):
        encoder(torch.randn(1, 3, 48, 48))
    with pytest.raises(ValueError, match="attends within windows"):
        encoder.attention(images)
    with pytest.raises(ValueError, match="there is the last stage's map only"):
        encoder.intermediate(images, [0])
    small = {"model": FIRST, **FIELDS}
    with pytest.raises(ValueError, match="MAE drops patches, which 'swin_tiny_patch4_window7_224' cannot"):
        mae.Config.model_validate({"view": View(size=SIZE, mask=RandomMask()), "encoder": small})
    with pytest.raises(ValueError, match="DINO needs positions for crops of any size"):
        dino.Config.model_validate({"encoder": small})
    with pytest.raises(ValueError, match="iBOT reads a class token, which 'swin_tiny_patch4_window7_224' has not"):
        ibot.Config.model_validate({"encoder": small})
    with pytest.raises(ValueError, match="a mask unit of 6 pixels is not a multiple of the patch size 4"):
        simmim.Config.model_validate({"view": View(size=SIZE, mask=RandomMask(unit=6)), "encoder": small})


def test_asking_for_layers_of_lora_changes_nothing() -> None:
    encoder = make(SECOND)
    flags = [part.qkv_bias_separate for part in encoder.modules() if hasattr(part, "qkv_bias_separate")]
    assert encoder.adaptable and flags and not any(flags)
    assert flags == [part.qkv_bias_separate for part in encoder.modules() if hasattr(part, "qkv_bias_separate")]
