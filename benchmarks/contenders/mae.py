"""MAE: ours against lightly's, and ours with the cross decoder at a quarter of the hidden patches.

Counted: patch embedding of all 196 patches, encoder over 50 tokens, decoder over 197, prediction of all 196 patches.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contenders.parts import (
    MODEL,
    PATCH,
    PATCHES,
    PIXELS,
    SIDE,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    blocks,
    crops,
    encoder,
    equal_mask,
    linear,
    patch_embedding,
    timm_vit,
    with_class_token,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.pretrain.decoders.cross_light import Config as LightDecoder
from unlabeled.pretrain.decoders.self import Config as SelfDecoder
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.mae import Config

RATIO, DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 0.75, 512, 8, 16
VISIBLE = int(PATCHES * (1 - RATIO))


def make_batch(pictures: int, seed: int) -> Batch:
    """Noise and random masks."""
    generator = torch.Generator().manual_seed(seed)
    return as_batch(pictures, ViewBatch(crops(generator, 1, pictures), equal_mask(generator, pictures, VISIBLE)))


def ours(depth: int, cross: bool = False) -> Method:
    """Our MAE, with the paper's decoder or the cross decoder."""
    size = {"width": DECODER_WIDTH, "depth": min(depth, DECODER_DEPTH), "heads": DECODER_HEADS}
    decoder = LightDecoder(**size, share=0.25) if cross else SelfDecoder(**size)
    view = View(size=SIDE, mask=RandomMask(ratio=RATIO))
    return Config(view=view, encoder=EncoderConfig(model=MODEL, depth=depth), decoder=decoder).build()


class LightlyMAE(Peer):
    """As in lightly's documentation."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "decoder.embed.": "embed.",
        "decoder.head.": "head.",
        "decoder.positions": "decoder.pos_embed",
    }

    def __init__(self, depth: int) -> None:
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=timm_vit(depth))
        self.backbone.mask_token.requires_grad_(False)  # MAE drops patches instead
        self.embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=PATCHES, embed_dim=DECODER_WIDTH, depth=min(depth, DECODER_DEPTH), num_heads=DECODER_HEADS
        )
        self.head = nn.Linear(DECODER_WIDTH, PIXELS)

    def forward(self, batch: Batch) -> Tensor:
        from lightly.models import utils

        images, mask = batch.views[0].flat()
        assert mask is not None
        keep, drop = (with_class_token(index) for index in mask.indices())
        keep = torch.cat([torch.zeros_like(keep[:, :1]), keep], dim=1)
        encoded = self.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.decoder.sequence_length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        prediction = self.head(utils.get_at_index(self.decoder(tokens), drop))
        target = utils.get_at_index(utils.patchify(images, PATCH), drop - 1)
        return F.mse_loss(prediction, utils.normalize_mean_var(target, dim=-1))


def gflop() -> float:
    """Of a step, per picture."""
    decoder = blocks(PATCHES + 1, DECODER_WIDTH, DECODER_DEPTH) + linear(PATCHES, DECODER_WIDTH, PIXELS)
    bridge = linear(VISIBLE + 1, WIDTH, DECODER_WIDTH)
    return 3 * (patch_embedding(PATCHES) + encoder(VISIBLE) + bridge + decoder)


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlyMAE,
    variants={"mae_cross": Ours(lambda depth: ours(depth, cross=True), None)},
)
