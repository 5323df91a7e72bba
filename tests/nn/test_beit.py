"""BEiT-style encoders: timm's features, mask tokens, and relative positions carried to other grids and into blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.families.beit import EXTRA, SHARED, Beit, fit_tables, resize_table
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask

MODEL = "beit_base_patch16_224"
CONFIG = EncoderConfig(model=MODEL, patch_size=8, width=24, depth=2, heads=2, positions="relative")


# official switches: (positions, relative_tables) by (use_abs_pos_emb, use_rel_pos_bias, use_shared_rel_pos_bias)
SWITCHES: dict[tuple[bool, bool, bool], dict[str, Any]] = {
    (False, False, True): {"positions": "relative"},
    (False, True, False): {"positions": "relative", "relative_tables": "blocks"},
    (False, True, True): {"positions": "relative", "relative_tables": "both"},
    (True, False, False): {"positions": "learned"},
    (True, False, True): {"positions": "relative_learned"},
    (True, True, False): {"positions": "relative_learned", "relative_tables": "blocks"},
}


def make(seed: int = 0, **changed: Any) -> Encoder:
    """With weights at which every part shows."""
    torch.manual_seed(seed)
    encoder = CONFIG.model_validate({**CONFIG.model_dump(), **changed}).build((32, 24))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def joined(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def some_hidden(batch: int, patches: int) -> PatchMask:
    hidden = torch.rand(batch, patches, generator=torch.Generator().manual_seed(1)) < 0.4
    return PatchMask(hidden, None, None)


@pytest.mark.parametrize("switches", SWITCHES)
def test_features_are_timms(switches: tuple[bool, bool, bool]) -> None:
    encoder, images = make(**SWITCHES[switches]), torch.randn(2, 3, 32, 24)
    vit = encoder.vit
    own = vit.blocks[0].attn.relative_position_bias_table is not None
    assert (vit.pos_embed is not None, own, vit.rel_pos_bias is not None) == switches
    tokens = encoder(images)
    torch.testing.assert_close(joined(tokens), encoder.vit.forward_features(images))
    assert (tokens.grid, encoder.native_grid, encoder.num_prefix) == ((4, 3), (4, 3), 1)


def test_hidden_patches_become_the_token_and_are_not_seen() -> None:
    encoder, images, token = make(), torch.randn(2, 3, 32, 24), torch.randn(1, 1, 24)
    mask = some_hidden(2, 12)
    pixels = mask.hidden.unflatten(1, (4, 3)).repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    tokens = encoder(images, replace=mask, fill=token)
    assert torch.equal(tokens.patches, encoder(torch.where(pixels, 9.0, images), replace=mask, fill=token).patches)

    # timm on an embedding whose rows are replaced one by one
    def replaced(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for b, n in mask.hidden.nonzero().tolist():
            embedded[b, n] = token[0, 0]
        return embedded

    encoder.vit.patch_embed.register_forward_hook(replaced)
    torch.testing.assert_close(joined(tokens), encoder.vit.forward_features(images))


@pytest.mark.parametrize("changed", [{}, {"relative_tables": "both"}, {"positions": "relative_learned"}])
def test_blocks_of_their_own_tables_answer_as_with_a_shared_one(changed: dict[str, Any]) -> None:
    encoder, images = make(**changed), torch.randn(2, 3, 32, 24)
    arguments = {**encoder.arguments, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    other = timm.create_model(MODEL, num_classes=0, global_pool="token", **arguments).eval()
    other.load_state_dict(fit_tables(encoder.vit.state_dict(), encoder.native_grid, other))
    torch.testing.assert_close(other.forward_features(images), joined(encoder(images)))


def test_a_cubic_over_offsets_survives_another_grid() -> None:
    """SimMIM's rule: offsets spread geometrically, +-1 among them whatever the grid; splines are exact on cubics."""

    def cubic(y: Tensor, x: Tensor) -> Tensor:
        return 0.01 * y**3 - 0.02 * y**2 * x + 0.1 * x**2 + y - 3

    def offsets(positive: Tensor) -> Tensor:
        return torch.cat([-positive.flip(0), torch.zeros(1), positive])

    # the ratio at which 1 + q + q^2 reaches 4, the largest offset of five patches: solved by hand
    ratio = (-1 + (1 + 4 * 3) ** 0.5) / 2
    rows = offsets(torch.tensor([1, 1 + ratio, 1 + ratio + ratio**2]))
    columns = offsets(torch.arange(1.0, 4))
    extra = torch.randn(EXTRA, 1)
    table = torch.cat([cubic(rows[:, None], columns[None, :]).reshape(-1, 1), extra])
    carried = resize_table(table, (4, 4), (5, 4))
    whole = cubic(torch.arange(-4.0, 5)[:, None], columns[None, :]).reshape(-1, 1)
    torch.testing.assert_close(carried, torch.cat([whole, extra]), rtol=1e-4, atol=1e-4)


def test_a_table_of_the_same_grid_is_kept() -> None:
    table = make().vit.state_dict()[SHARED]
    assert torch.equal(resize_table(table, (4, 3), (4, 3)), table)


def test_what_relative_positions_cannot_do_is_refused() -> None:
    encoder, images = make(), torch.randn(1, 3, 32, 24)
    with pytest.raises(ValueError, match=f"'{MODEL}' cannot drop patches"):
        encoder(images, drop=some_hidden(1, 12))
    with pytest.raises(ValueError, match=r"built for images of \(32, 24\) pixels, found \(32, 32\)"):
        encoder(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="expected a timm Beit, found 'vit_tiny_patch16_224'"):
        Beit(timm.create_model("vit_tiny_patch16_224", num_classes=0), "vit_tiny_patch16_224", {})


@pytest.mark.parametrize("changed", SWITCHES.values())
def test_exports_of_all_positions_load_at_another_size(changed: dict[str, Any], tmp_path: Path) -> None:
    encoder, images = make(**changed), torch.randn(2, 3, 32, 24)
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    alone = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(joined(encoder(images)), alone.forward_features(images))
    torch.testing.assert_close(joined(load_encoder(tmp_path / "out")(images)), joined(encoder(images)))
    larger = load_encoder(tmp_path / "out", image_size=(40, 48))
    assert larger(torch.randn(1, 3, 40, 48)).grid == (5, 6)
    if (table := encoder.vit.pos_embed) is not None:
        image = table[:, 1:].reshape(1, 4, 3, 24).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(5, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        expected = torch.cat([table[:, :1], image.reshape(1, -1, 24)], dim=1)
        torch.testing.assert_close(larger.vit.pos_embed, expected)


def test_no_layer_scale() -> None:
    encoder, images = make(init_values=0), torch.randn(2, 3, 32, 24)
    assert encoder.vit.blocks[0].gamma_1 is None
    torch.testing.assert_close(joined(encoder(images)), encoder.vit.forward_features(images))


def test_positions_and_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="has no sincos positions: expected relative, relative_learned or learned"):
        make(positions="sincos")
    with pytest.raises(ValueError, match="positions are learned, which have no tables: leave it out, found both"):
        make(positions="learned", relative_tables="both")
    with pytest.raises(ValueError, match="positions are sincos, which have no tables"):
        EncoderConfig(relative_tables="blocks")


def test_mae_refuses_it() -> None:
    from unlabeled.pretrain.methods.mae import Config

    with pytest.raises(ValueError, match=f"MAE drops patches, which '{MODEL}' cannot"):
        Config(view=View(size=32, mask=RandomMask()), encoder=CONFIG)
