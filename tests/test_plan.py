"""The plan knows what a step needs before there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ROOT

from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.masks.stratified_block import Config as StratifiedBlockMask
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import check_accumulation, empty_batch, memory, millions, on_meta, plan
from unlabeled.pretrain.method import METHODS, Method
from unlabeled.recipe import load
from unlabeled.stages.pretrain import Pretrain, PretrainRecipe


@pytest.mark.parametrize(
    ("mask", "share"),
    [(RandomMask(ratio=0.75), 0.75), (BlockMask(), 0.15), (StratifiedBlockMask(), 0.15), (None, None)],
)
def test_expects_as_many_hidden_patches_as_masks_hide(mask: object, share: float | None) -> None:
    view = View(size=224, count=2, mask=mask)  # type: ignore[arg-type]
    found = empty_batch((view,), 16, 8, 3).views[0].hidden
    # blocks may fall short
    assert found is None if share is None else found / (2 * 8 * 196) == pytest.approx(share, abs=0.04)


def test_what_a_method_refuses_is_not_blamed_on_the_network() -> None:
    def build() -> Method:
        raise UserError("task.pool is cls")

    with pytest.raises(UserError, match=r"^task\.pool is cls$"):
        on_meta(build)


@pytest.mark.parametrize(
    ("method", "fields", "why"),
    [
        ("simclr", {}, "negatives of the batch, batch normalisation of projector"),
        (
            "dino",
            {"encoder": {"model": "test_resnet"}},
            "batch normalisation of test_resnet, batch normalisation of head",
        ),
        ("ibot", {"koleo": 0.1}, "KoLeo"),
        ("ibot", {"targets": "sinkhorn"}, "Sinkhorn-Knopp"),
    ],
)
def test_micro_batches_are_refused_with_the_statistic_that_they_would_change(
    method: str, fields: dict[str, Any], why: str
) -> None:
    made = on_meta(METHODS.kind(method)(**fields).build)
    check_accumulation(made, batch_size=2, micro_batches=1)
    with pytest.raises(UserError, match=rf"\({why}\), so run.accumulate=2 would .* run.checkpoint_activations=blocks"):
        check_accumulation(made, batch_size=4, micro_batches=2)
    with pytest.raises(UserError, match=rf"\({why}\), found train.batch_size=1"):
        check_accumulation(made, batch_size=1, micro_batches=1)


@pytest.mark.parametrize("method", ["mae", "simmim", "dino", "ibot"])
def test_micro_batches_are_welcome_where_nothing_crosses_pictures(method: str) -> None:
    check_accumulation(on_meta(METHODS.kind(method)().build), batch_size=1, micro_batches=8)


def test_activations_fall_with_the_blocks_that_are_computed_twice() -> None:
    def planned(value: str) -> tuple[float, float]:
        changes = [f"run.checkpoint_activations={value}", "train.batch_size=8", "data.train_size=16"]
        recipe = load(PretrainRecipe, ROOT / "recipes" / "demo" / "mae_shapes.yaml", changes)
        job = Pretrain().job(recipe, Opened(recipe.data))
        return memory(on_meta(job.build), job, 8)

    (weights, kept), (same, half), (again, fewest) = (planned(value) for value in ("null", "2", "blocks"))
    assert weights == same == again
    assert fewest < 0.5 * kept and fewest < half < kept


@pytest.mark.parametrize(
    ("epochs", "said"),
    [(1.5, "warm-up 1.5 epochs (75 % of the run: lower optim.warmup_epochs"), (1, "1 epochs, cosine")],
)
def test_a_warm_up_that_takes_most_of_a_run_is_cautioned_against(epochs: float, said: str) -> None:
    short = ["train.epochs=2", f"optim.warmup_epochs={epochs}", "run.device=cpu", "evaluate=null"]
    recipe = load(PretrainRecipe, str(ROOT / "recipes" / "demo" / "mae_shapes.yaml"), short)
    job = Pretrain().job(recipe, Opened(recipe.data))
    assert said in dict(plan(job, [], 1, "cpu"))["lr"]


def test_few_parameters_are_counted() -> None:
    assert millions([torch.empty(640)]) == "640"
    assert millions([torch.empty(90_000), torch.empty(60_000)]) == "0.1 M" and millions([]) == "0.0 M"
