"""SparK, 29 of 49 cells hidden from a ResNet-50: ours alone.

Counted: the dense network at all positions, which masked layers compute too; maps made dense, and the U-Net.
"""

from __future__ import annotations

import torch

from contenders.parts import CHANNELS, DEPTH, SIDE, Comparison, Ours, as_batch, crops, linear
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.map_decoders.unet import Config as UNet
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.spark import Config

CELLS, VISIBLE, DECODER_WIDTH = 49, 20, 768
ENCODER_GFLOP = 8.2  # of a ResNet-50, forward, 224 px
WIDTHS = (2048, 1024, 512, 256)  # of its maps, the deepest first


def make_batch(pictures: int, seed: int) -> Batch:
    """One crop of noise, its cells hidden at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(pictures, CELLS, generator=generator).argsort(dim=1)
    keep, drop = order[:, :VISIBLE], order[:, VISIBLE:]
    hidden = torch.ones(pictures, CELLS, dtype=torch.bool).scatter(1, keep, False)
    return as_batch(pictures, ViewBatch(crops(generator, 1, pictures), PatchMask(hidden[None], keep[None], drop[None])))


def ours(depth: int) -> Method:
    """Our SparK; with fewer blocks than published, that of the smallest ResNet."""
    whole = depth == DEPTH
    encoder = EncoderConfig(model="resnet50" if whole else "test_resnet")
    return Config(encoder=encoder, decoder=UNet(width=DECODER_WIDTH if whole else 32)).build()


def gflop() -> float:
    """Of a step, per picture."""
    total = ENCODER_GFLOP
    for number in range(5):
        width, positions = DECODER_WIDTH >> number, CELLS * 4**number
        if number < len(WIDTHS):
            total += linear(positions, WIDTHS[number], width) * (9 if number else 1)
        # a transposed convolution of 4 x 4 at the coarse positions, then two of 3 x 3
        total += 16 * linear(positions, width, width)
        total += 9 * (linear(4 * positions, width, width) + linear(4 * positions, width, width >> 1))
    return 3 * (total + linear(SIDE * SIDE, DECODER_WIDTH >> 5, CHANNELS))


COMPARISON = Comparison(make_batch=make_batch, ours=Ours(ours, gflop()), lightly=None)
