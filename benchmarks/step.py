"""One MAE step (forward, backward, AdamW) of ViT-S/16 at 224 pixels, batch 8, float32: ours and lightly's.

    python benchmarks/step.py [--json] [--rounds N]

Needs `pip install lightly>=1.6`. Each contender lives in a process of its own, as a user of it would run it; the
processes take turns. "ours" has the settings that our engine makes on a CPU; "lightly + our allocator" gets them too.

The share of the peak is (matrix products of the network as published) / time / (the fastest float32 `F.linear` that
the same process does in the same turn). The products are counted once for all contenders, whatever each leaves out:
patch embedding of all 196 patches, encoder over 50 tokens, decoder over 197, prediction of all 196 patches,
attention's two products included, times 3 for forward and backward. Nothing else is counted.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import finish, forget_peak_memory, machine, matmul_peak, options, peak_memory_mb, seconds, table
from torch import Tensor, nn

from unlabeled.data.masks import RandomMask
from unlabeled.data.views import View
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.mae import MAE, Config
from unlabeled.nn.decoders import CrossDecoderConfig, SelfDecoderConfig
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.patches import PatchMask
from unlabeled.train.cpu import keep_freed_memory
from unlabeled.train.optim import AdamW, param_groups

BATCH, SIDE, PATCH, RATIO = 8, 224, 16, 0.75
WIDTH, DEPTH = 384, 12
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 512, 8, 16
MODEL = "vit_small_patch16_224"
PATCHES, PIXELS = (SIDE // PATCH) ** 2, PATCH * PATCH * 3
VISIBLE = int(PATCHES * (1 - RATIO))
LR, BETAS, DECAY = 1e-4, (0.9, 0.95), 0.05
START = Progress(0, 1, 0.0, 1.0)

Step = Callable[[], Tensor]


class Turn(NamedTuple):
    """What one turn of a contender measured."""

    seconds: float
    peak_gflops: float
    peak_mb: float


# ---------------------------------------------------------------- the contenders


def make_batch(seed: int = 0) -> Batch:
    """Noise pictures and random masks."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    order = torch.rand(BATCH, PATCHES, generator=generator).argsort(dim=1)
    keep, drop = order[:, :VISIBLE], order[:, VISIBLE:]
    hidden = torch.zeros(BATCH, PATCHES, dtype=torch.bool).scatter(1, drop, True)
    mask = PatchMask(hidden[None], keep[None], drop[None])
    return Batch([ViewBatch(images[None], mask)], torch.full((BATCH,), -1), torch.arange(BATCH))


def make_ours(cross: bool = False) -> MAE:
    """Our MAE, with the decoder of the paper or the cross decoder at a quarter of the hidden patches."""
    size = {"width": DECODER_WIDTH, "depth": DECODER_DEPTH, "heads": DECODER_HEADS}
    decoder = CrossDecoderConfig(**size, share=0.25) if cross else SelfDecoderConfig(**size)
    view = View(size=SIDE, mask=RandomMask(ratio=RATIO))
    return Config(view=view, encoder=EncoderConfig(model=MODEL), decoder=decoder).build().train()


class LightlyMAE(nn.Module):
    """The same network from lightly's parts, put together as lightly documents."""

    def __init__(self) -> None:
        import timm
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=timm.create_model(MODEL, num_classes=0))
        self.backbone.mask_token.requires_grad_(False)  # MAE drops patches instead
        self.embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=PATCHES, embed_dim=DECODER_WIDTH, depth=DECODER_DEPTH, num_heads=DECODER_HEADS
        )
        self.head = nn.Linear(DECODER_WIDTH, PIXELS)

    def forward(self, images: Tensor, keep: Tensor, drop: Tensor) -> Tensor:
        """The loss; `keep` and `drop` count the class token as token 0."""
        from lightly.models import utils

        encoded = self.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.decoder.sequence_length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        prediction = self.head(utils.get_at_index(self.decoder(tokens), drop))
        target = utils.get_at_index(utils.patchify(images, PATCH), drop - 1)
        return F.mse_loss(prediction, utils.normalize_mean_var(target, dim=-1))


def ours_loss(model: MAE, batch: Batch) -> Step:
    """A forward of ours."""
    return lambda: model(batch, START).loss


def lightly_loss(model: LightlyMAE, batch: Batch) -> Step:
    """A forward of lightly's, on the same pictures and masks."""
    images, mask = batch.views[0].flat()
    assert mask is not None
    kept, drop = mask.indices()
    keep = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    return lambda: model(images, keep, drop + 1)


def make_step(loss: Step, optimizer: torch.optim.Optimizer) -> Step:
    """Forward, backward, update."""

    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def make_contender(name: str) -> Step:
    """A training step by name."""
    torch.manual_seed(0)
    batch = make_batch()
    if name.startswith("lightly"):
        model = LightlyMAE().train()
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return make_step(lightly_loss(model, batch), torch.optim.AdamW(groups, lr=LR, betas=BETAS))
    ours = make_ours(cross="cross" in name)
    optimizer = AdamW(betas=BETAS).build(param_groups(ours, DECAY))
    for group in optimizer.param_groups:
        group["lr"] = LR
    return make_step(ours_loss(ours, batch), optimizer)


OURS, CROSS = "ours", "ours, cross decoder"
LIGHTLY, LIGHTLY_KEPT = "lightly", "lightly + our allocator"
CONTENDERS = (OURS, LIGHTLY, LIGHTLY_KEPT, CROSS)


# ---------------------------------------------------------------- identical mathematics


def lightly_name(name: str) -> str:
    """lightly's name of our parameter."""
    renames = {"encoder.vit.": "backbone.vit.", "decoder.embed.": "embed.", "decoder.head.": "head."}
    for mine, theirs in renames.items():
        if name.startswith(mine):
            return theirs + name.removeprefix(mine)
    return name.replace("decoder.positions", "decoder.pos_embed")


def disagreement() -> tuple[float, float]:
    """Largest relative difference between ours and lightly's at the same weights: of the loss, of any gradient."""
    batch, ours, theirs = make_batch(seed=1), make_ours(), LightlyMAE().train()
    weights = {lightly_name(name): tensor for name, tensor in ours.state_dict().items()}
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and result.missing_keys == ["backbone.mask_token"], result
    a, b = ours_loss(ours, batch)(), lightly_loss(theirs, batch)()
    a.backward()
    b.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    mine = {lightly_name(name): p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert mine.keys() == gradients.keys()
    # against the largest gradient of the tensor: single elements may be zero
    worst = max(((g - mine[name]).abs().max() / g.abs().max()).item() for name, g in gradients.items())
    return abs(a.item() / b.item() - 1), worst


# ---------------------------------------------------------------- measuring


def network_gflop() -> float:
    """GFLOP of a step's matrix products, as this file's head says."""

    def blocks(tokens: int, width: int, depth: int) -> int:
        return depth * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width)

    embedding = 2 * PATCHES * PIXELS * WIDTH
    encoder = blocks(VISIBLE + 1, WIDTH, DEPTH)
    bridge = 2 * (VISIBLE + 1) * WIDTH * DECODER_WIDTH
    decoder = blocks(PATCHES + 1, DECODER_WIDTH, DECODER_DEPTH)
    prediction = 2 * PATCHES * DECODER_WIDTH * PIXELS
    return 3 * BATCH * (embedding + encoder + bridge + decoder + prediction) / 1e9


def serve(name: str, threads: int, pipe: Connection) -> None:
    """A contender's process: a turn for each request, until there is none."""
    torch.set_num_threads(threads)
    if name != LIGHTLY:
        keep_freed_memory()
    step = make_contender(name)
    forget_peak_memory()
    for _ in range(2):
        step()
    memory = peak_memory_mb()
    pipe.send(None)
    while pipe.recv():
        peak = matmul_peak()
        pipe.send(Turn(seconds(step), max(peak, matmul_peak()), memory))


def measure(names: tuple[str, ...], rounds: int, threads: int) -> dict[str, list[Turn]]:
    """Turns of each contender, one after the other in every round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], far = context.Pipe()
        process = context.Process(target=serve, args=(name, threads, far), daemon=True)
        process.start()
        processes.append(process)
        pipes[name].recv()  # ready: nobody warms up during another's turn
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for done in range(rounds):
        print(f"round {done + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        for name in names if done % 2 == 0 else reversed(names):
            pipes[name].send(True)
            turns[name].append(pipes[name].recv())
    for name, process in zip(names, processes, strict=True):
        pipes[name].send(False)
        process.join()
    return turns


def main() -> None:
    """Compare, print a table, and one object with `--json`."""
    chosen = options("One MAE step: ours and lightly's.", rounds=9)
    torch.set_num_threads(chosen.threads)
    loss, gradient = disagreement()
    print(f"{machine()}; {network_gflop():.0f} GFLOP per step")
    print(f"at the same weights ours and lightly differ by {loss:.1e} (loss), {gradient:.1e} (gradients), relative")

    turns = measure(CONTENDERS, chosen.rounds, chosen.threads)
    result = summary(turns)
    print(report(turns, result))
    finish(chosen, result)


def middle(turns: list[Turn]) -> float:
    """Median seconds per step."""
    return median(turn.seconds for turn in turns)


def share(turns: list[Turn]) -> float:
    """Median share of the peak that the same turn measured."""
    return median(network_gflop() / turn.seconds / turn.peak_gflops for turn in turns)


def summary(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """The figures by name. Ratios above 1 mean that ours is faster."""
    ours = middle(turns[OURS])
    return {
        "mae": {
            "images_per_s": round(BATCH / ours, 2),
            "vs_lightly": round(middle(turns[LIGHTLY]) / ours, 3),
            "vs_lightly_same_allocator": round(middle(turns[LIGHTLY_KEPT]) / ours, 3),
            "share_of_peak": round(share(turns[OURS]), 3),
            "peak_mb": round(turns[OURS][0].peak_mb),
        },
        "lightly": {
            "images_per_s": round(BATCH / middle(turns[LIGHTLY]), 2),
            "share_of_peak": round(share(turns[LIGHTLY]), 3),
            "peak_mb": round(turns[LIGHTLY][0].peak_mb),
        },
        "mae_cross": {"vs_mae": round(ours / middle(turns[CROSS]), 2)},
    }


def report(turns: dict[str, list[Turn]], result: dict[str, Any]) -> str:
    """The table."""
    head = ("medians", "s/step", "fastest", "images/s", "GFLOP/s peak", "share of peak", "peak MB")
    rows = []
    for name, own in turns.items():
        time = middle(own)
        shown = "-" if name == CROSS else f"{share(own):.3f}"  # its network is another, its products are fewer
        peak, memory = median(turn.peak_gflops for turn in own), own[0].peak_mb
        fastest = min(turn.seconds for turn in own)
        rows.append(
            (
                name,
                f"{time:.3f}",
                f"{fastest:.3f}",
                f"{BATCH / time:.2f}",
                f"{peak:.0f}",
                shown,
                f"{memory:.0f}",
            )
        )
    mae, cross = result["mae"], result["mae_cross"]
    return (
        f"{table(head, rows)}\nours is {mae['vs_lightly']:.3f} x lightly's speed "
        f"({mae['vs_lightly_same_allocator']:.3f} x with our allocator's settings for both); "
        f"the cross decoder is {cross['vs_mae']:.2f} x as fast as ours"
    )


if __name__ == "__main__":
    main()
