"""SwAV beyond the contract: assignments by loops in double precision, queues that fill, prototypes that stand still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.swav import Config, SwAV

ENCODER = EncoderConfig(
    model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2, positions="learned", interpolation="scale"
)
BEGUN = Progress(5, 10, 5.0, 10.0)


def built(**fields: object) -> SwAV:
    torch.manual_seed(0)
    views = {"view": View(size=8, count=2), "local": View(size=4, count=3)}
    return Config.model_validate(
        {**views, "encoder": ENCODER, "hidden": 12, "dim": 6, "prototypes": 7, "queue_epoch": 0, **fields}
    ).build()


def batch(seed: int, rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(count, rows, 3, side, side, generator=generator) for count, side in ((2, 8), (3, 4))]
    return Batch([ViewBatch(pixels, None) for pixels in views], torch.zeros(rows), torch.zeros(rows))


def balanced(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Sinkhorn-Knopp of rows of scores, number by number."""
    plan = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(iterations):
        totals = [sum(row[k] for row in plan) for k in range(len(plan[0]))]
        plan = [[value / total for value, total in zip(row, totals, strict=True)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


def expected(model: SwAV, vectors: list[Tensor], queues: list[Tensor]) -> float:
    """The loss of unit vectors of every view [B, D]: pictures, pairs of views and prototypes one by one."""
    c, prototypes, total, pairs = model.config, model.prototypes.weight.double(), 0.0, 0
    for first in range(2):
        rows = [*queues[first].double(), *vectors[first].double()]
        plan = balanced([(prototypes @ row).tolist() for row in rows], c.epsilon, c.iterations)[-len(vectors[first]) :]
        for second in range(len(vectors)):
            if second != first:
                pairs += 1
                for aim, vector in zip(plan, vectors[second].double(), strict=True):
                    logits = (prototypes @ vector / c.temperature).log_softmax(0).tolist()
                    total -= sum(q * p for q, p in zip(aim, logits, strict=True)) / len(vectors[first])
    return total / pairs


def vectors_of(model: SwAV, data: Batch) -> list[Tensor]:
    seen = [model.encoder.feature(view.flat()[0]) for view in data.views]
    with torch.no_grad():
        return list(torch.nn.functional.normalize(model.projector(torch.cat(seen)), dim=1).chunk(5))


@pytest.mark.parametrize("fields", [{}, {"epsilon": 0.2, "iterations": 2, "temperature": 0.3}])
def test_the_loss_with_a_queue_that_fills(fields: dict[str, float]) -> None:
    """Of 10 vectors: three batches of 4 fill it, of which the oldest two rows are forgotten."""
    model = built(queue=10, **fields)
    queues: list[list[Tensor]] = [[], []]
    for step in range(4):
        data = batch(step)
        vectors = vectors_of(model, data)
        full = [torch.cat(queue)[:10] if len(queue) >= 3 else torch.zeros(0, 6) for queue in queues]
        found = model(data, BEGUN._replace(step=step)).loss
        assert found.item() == pytest.approx(expected(model, vectors, full), rel=1e-5)
        model.after_step(BEGUN._replace(step=step))
        for queue, rows in zip(queues, vectors, strict=False):
            queue.insert(0, rows)


def test_a_queue_begins_in_its_epoch() -> None:
    model, plain = built(queue=4, queue_epoch=6), built()
    for progress in (BEGUN, Progress(6, 10, 6.0, 10.0)):
        assert torch.equal(model(batch(0), progress).loss, plain(batch(0), progress).loss)
        model.after_step(progress)
        assert model.get_buffer("queues.1.rows").any() == (progress.epoch >= 6)


def test_prototypes_are_unit_vectors_unless_a_step_was_skipped() -> None:
    model = built()
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(7))
    with torch.no_grad():
        model.prototypes.weight.mul_(3)
    before = model.prototypes.weight.detach().clone()
    model.after_step(BEGUN, torch.tensor(True))
    assert torch.equal(model.prototypes.weight, before)
    model.after_step(BEGUN, torch.tensor(False))
    torch.testing.assert_close(model.prototypes.weight, before / 3)


def test_prototypes_are_held_at_first() -> None:
    model = built(frozen_epochs=5)
    early = list(model.frozen(Progress(4, 10, 4.9, 10.0)))
    assert [id(one) for one in early] == [id(model.prototypes.weight)] and not list(model.frozen(BEGUN))
