"""Masked CNNs against sparse ones made of hooks: every output times the mask, statistics of visible rows alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.masked import Visible, mask_, probe
from unlabeled.errors import UserError
from unlabeled.nn.batchnorm import BatchNorm, synchronise_
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.recompute import recompute_
from unlabeled.pretrain.map_decoders.single import Config as Single
from unlabeled.pretrain.map_decoders.unet import Config as UNet

GRID = (2, 3)
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (4, 6, 8, 10)}),
    "gates": (
        "resnet26d",
        {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4), "block_args": {"attn_layer": "se"}},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 10)}),
    "v2": ("convnextv2_tiny", {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 10)}),
}


def encoder_of(name: str) -> Encoder:
    """A small network in double precision, no weight of which is zero."""
    torch.manual_seed(0)
    model, arguments = NETWORKS[name]
    encoder = build_encoder(model, {"img_size": [64, 96], "in_chans": 3, **arguments}).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def visible_cells() -> Visible:
    return Visible(torch.tensor([[5, 0, 1], [2, 4, 0]]), GRID)


def sparse_(network: nn.Module, cells: Tensor) -> None:
    """Let a network compute as SparK's: hooks on its layers, cells [B, 1, rows, columns] are the visible ones."""

    def at(x: Tensor) -> Tensor:
        return cells.repeat_interleave(x.shape[2] // GRID[0], 2).repeat_interleave(x.shape[3] // GRID[1], 3)

    def masked(part: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        if out.ndim == 4 and out.shape[1] == getattr(part, "out_channels", out.shape[1]) and out.shape[2] >= GRID[0]:
            return out * at(out)
        return out

    def rows(part: Any, inputs: Any, out: Tensor) -> Tensor:
        x, normed = inputs[0], torch.zeros_like(out)
        for channel in range(x.shape[1]):
            seen = x[:, channel][at(x)[:, 0].bool()]
            values = (seen - seen.mean()) / (seen.var(correction=0) + part.eps).sqrt()
            values = values * part.weight[channel] + part.bias[channel]
            normed[:, channel][at(x)[:, 0].bool()] = values
        return part.act(normed)

    def last(part: nn.Module, inputs: Any, out: Tensor) -> Tensor:  # [B, H, W, C]
        return out * at(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def gate(part: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * at(inputs[0]),)

    for part in network.modules():
        if isinstance(part, BatchNorm):
            part.register_forward_hook(rows)
        elif isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or type(part).__name__ == "LayerNorm2d":
            part.register_forward_hook(masked)
        elif isinstance(part, nn.Linear | nn.LayerNorm):
            part.register_forward_hook(last)
        elif type(part).__name__ == "SEModule":
            part.register_forward_pre_hook(gate)
            part.fc1.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 6 / 3,))  # a mean of half of the cells


@pytest.mark.parametrize("name", NETWORKS)
def test_a_masked_network_equals_a_sparse_one(name: str) -> None:
    ours, visible = encoder_of(name).train(), visible_cells()
    theirs = copy.deepcopy(ours)
    cells = visible.map(1).double()
    sparse_(theirs.vit, cells)
    held = mask_(ours.vit)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with held.holding(visible):
        maps = ours.stages(images)
    expected = theirs.stages(images * cells.repeat_interleave(32, 2).repeat_interleave(32, 3))
    losses = []
    for found in (maps, expected):
        seen = [visible.seen(one) for one in found]
        losses.append(
            torch.stack([(rows * torch.linspace(-1, 1, rows.numel()).view_as(rows)).sum() for rows in seen]).sum()
        )
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(visible.zeroed(one), visible.zeroed(other), rtol=1e-9, atol=1e-9)
    for loss in losses:
        loss.backward()
    for (key, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", ["v2"])
def test_nothing_of_hidden_pixels_is_seen_and_unmasked_it_is_timms(name: str) -> None:
    encoder, visible = encoder_of(name).train(), visible_cells()
    before, names = copy.deepcopy(encoder.vit), list(encoder.state_dict())
    held = mask_(encoder.vit)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    changed = torch.where(visible.map(32), images, torch.full_like(images, torch.nan))
    with held.holding(visible):
        one, other = encoder.stages(images), encoder.stages(changed)
    for a, b in zip(one, other, strict=True):
        rows = (visible.seen(x) for x in (a, b))
        torch.testing.assert_close(*rows, rtol=0, atol=0)
    assert list(encoder.state_dict()) == names
    encoder.vit.load_state_dict(before.state_dict())
    assert torch.equal(encoder.eval()(images).patches, before.eval().forward_features(images).flatten(2).mT)


def test_numbers_of_positions_against_a_loop() -> None:
    visible, side = visible_cells(), 3
    expected = [
        (image * 6 + row) * 9 + column
        for image, cells in enumerate([[0, 1, 5], [0, 2, 4]])
        for cell in cells
        for row in range(cell // 3 * side, cell // 3 * side + side)
        for column in range(cell % 3 * side, cell % 3 * side + side)
    ]
    assert visible.index(side).tolist() == expected
    hidden = torch.ones(2, 6).scatter(1, visible.keep, 0).bool()
    mask = PatchMask(hidden, visible.keep, hidden.nonzero()[:, 1].view(2, 3))
    found = Visible.of(mask, torch.zeros(2, 3, 64, 96), visible)
    assert (found.grid, list(found.rows), list(found.maps)) == (GRID, [side], [])
    x = torch.randn(2, 6, 9, 4)
    filled = visible.put(visible.take(x), 6, torch.arange(4.0))
    at = visible.map(side)[:, 0].unsqueeze(-1)
    assert torch.equal(filled, torch.where(at, x, torch.arange(4.0)))


def test_blocks_computed_twice_see_the_same_mask() -> None:
    gradients = []
    for twice in (False, True):
        encoder, images = encoder_of("resnet").train(), torch.ones(2, 3, 64, 96, dtype=torch.float64)
        held = mask_(encoder.vit)
        if twice:
            recompute_(encoder, "blocks")
        with held.holding(visible_cells()):
            total = encoder.stages(images)[-1].square().sum()
        total.backward()  # where nothing is held any more
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_networks_whose_positions_all_meet_are_refused() -> None:
    encoder = encoder_of("resnet").float()
    encoder.vit.layer2[0].bn1 = nn.GroupNorm(1, 6)
    with pytest.raises(UserError, match="'resnet18' cannot be masked: its visible positions depend on hidden"):
        probe(encoder, mask_(encoder.vit))


def test_maps_of_a_probe_leave_out_the_stem_and_weights_that_nothing_reads_stop_learning() -> None:
    encoder = encoder_of("resnet").float()
    levels, asked = probe(encoder, mask_(encoder.vit))
    assert [tuple(level) for level in levels] == [(4, 10, 32), (3, 8, 16), (2, 6, 8), (1, 4, 4)]
    assert set(asked.maps) <= {1, 2, 4, 8, 16, 32} and all(p.requires_grad for p in encoder.parameters())
    encoder = encoder_of("v2").float()
    probe(encoder, mask_(encoder.vit))
    still = [key for key, parameter in encoder.vit.named_parameters() if not parameter.requires_grad]
    assert still == ["head.norm.weight", "head.norm.bias"]


@pytest.mark.parametrize("config", [UNet(width=32), Single(width=8, depth=2)])
def test_decoders_rebuild_the_whole_picture_from_visible_cells(config: Any) -> None:
    encoder, visible = encoder_of("resnet").float(), visible_cells()
    held = mask_(encoder.vit)
    levels, _ = probe(encoder, held)
    decoder = config.build(levels, 3, batch_norm=True).train()
    maps = [torch.randn(2, level.width, 64 // level.stride, 96 // level.stride) for level in levels]
    other = [visible.zeroed(x, torch.nan) for x in maps]
    torch.manual_seed(1)
    pixels = decoder(maps, visible)
    assert pixels.shape == (2, 3, 64, 96)
    torch.testing.assert_close(pixels, decoder(other, visible), rtol=0, atol=0)


def test_a_decoder_that_cannot_rebuild_pixels_is_refused() -> None:
    levels, _ = probe(encoder := encoder_of("resnet").float(), mask_(encoder.vit))
    with pytest.raises(UserError, match="a unet of width 16 cannot rebuild pixels from a stride of 32"):
        UNet(width=16).build(levels, 3, batch_norm=True)


def test_synchronised_norms_are_those_that_are_masked() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    synchronise_(network)
    held = mask_(network)
    assert all(part.held is held for part in network.modules() if isinstance(part, BatchNorm))
