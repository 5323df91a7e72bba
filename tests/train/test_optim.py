"""Rates, weight decay and clipping, step by step, against plain loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.data.batch.batch import Batch
from unlabeled.pretrain.method import Method, Output, Progress
from unlabeled.train.optim import clip_gradients, param_groups, set_rates
from unlabeled.train.optimizers import adamw, lamb, larc, lars, sgd
from unlabeled.train.schedule import Ramp
from unlabeled.train.schedules import cosine, plateau, steps, timm_cosine


class Two(Method):
    """A backbone and a head with gradients of given sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        for i, parameter in enumerate(self.parameters()):
            parameter.grad = torch.randn_like(parameter) * 10**i

    def forward(self, batch: Batch, progress: Progress) -> Output:
        raise NotImplementedError


def clipped(groups: Iterable[list[Tensor]], limit: float) -> list[Tensor]:
    """Each group's gradients times limit / (norm + 1e-6) where the norm exceeds the limit, in a loop."""
    result = []
    for group in groups:
        norm = sum(g.square().sum().item() for g in group) ** 0.5
        result += [g * min(1.0, limit / (norm + 1e-6)) for g in group]
    return result


@pytest.mark.parametrize("by", ["global", "tensor", "part"])
def test_clipping(by: str) -> None:
    method = Two()
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    groups = {"global": [gradients], "tensor": [[g] for g in gradients], "part": [gradients[:2], gradients[2:]]}[by]
    norm = clip_gradients(method, 5.0, by)  # type: ignore[arg-type]
    torch.testing.assert_close([p.grad for p in method.parameters()], clipped(groups, 5.0))
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients]).norm())


class Counted(TorchDispatchMode):
    """Counts the operators that are called within."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_clipping_by_tensor_equals_one_after_the_other_to_the_bit_at_a_fixed_number_of_calls() -> None:
    torch.manual_seed(0)
    calls = []
    for count in (3, 60):
        method = Two()
        method.body = nn.ParameterList(torch.zeros(i % 7 + 1, 5) for i in range(count))  # type: ignore[assignment]
        for parameter in method.parameters():
            parameter.grad = torch.randn_like(parameter) * 10 ** torch.empty(()).uniform_(-3, 1)
        gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
        scales = [(0.5 / (torch.linalg.vector_norm(g) + 1e-6)).clamp(max=1.0) for g in gradients]
        with Counted() as counted:
            clip_gradients(method, 0.5, "tensor")
        assert all(
            torch.equal(p.grad, g * scale)  # type: ignore[arg-type]
            for p, g, scale in zip(method.parameters(), gradients, scales, strict=True)
        )
        calls.append(counted.calls)
    assert calls[0] == calls[1] < 12


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (adamw.Config(betas=(0.8, 0.9), eps=1e-6), {"betas": (0.8, 0.9), "eps": 1e-6}),
        (sgd.Config(momentum=0.7), {"momentum": 0.7}),
        (lars.Config(momentum=0.6, trust=0.02), {"momentum": 0.6, "trust": 0.02}),
        (lamb.Config(betas=(0.8, 0.9), eps=1e-7), {"betas": (0.8, 0.9), "eps": 1e-7}),
        (larc.Config(momentum=0.6, trust=0.02, eps=0.1), {"momentum": 0.6, "trust": 0.02, "eps": 0.1}),
    ],
)
def test_optimizers_are_built_as_their_settings_say(config: Any, expected: dict[str, Any]) -> None:
    method = Two()
    method.head.requires_grad_(False)
    groups = config.build(param_groups(method, 0.1)).param_groups
    assert all(expected.items() <= group.items() for group in groups)
    learns = {group["weight_decay"]: [id(parameter) for parameter in group["params"]] for group in groups}
    assert learns == {0.1: [id(method.backbone.weight)], 0.0: [id(method.backbone.bias)]}


def test_larc_is_timms_lars_that_always_adapts() -> None:
    """Weights and their velocities, biases too, over steps of rates that change; one parameter has no decay."""
    torch.manual_seed(3)
    shapes = [(4, 3), (4,), (2, 3, 3, 3), (5,)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings = {"momentum": 0.8, "weight_decay": 0.1}
    groups = [{"params": ours[:3]}, {"params": ours[3:], "weight_decay": 0.0}]
    mine = larc.LARC([{**group, "eps": 1e-3} for group in groups], lr=0.5, trust=0.02, **settings)
    groups = [{"params": theirs[:3]}, {"params": theirs[3:], "weight_decay": 0.0}]
    other = Lars(groups, lr=0.5, trust_coeff=0.02, eps=1e-3, always_adapt=True, **settings)
    for rate in (0.5, 0.3, 0.2):
        for optimizer in (mine, other):
            for group in optimizer.param_groups:
                group["lr"] = rate
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_larc_leaves_what_has_no_norm_to_sgd() -> None:
    zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    optimizer = larc.LARC([{"params": [zero, still], "eps": 0.0}], lr=0.5, weight_decay=0.1)
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    optimizer.step()
    assert zero.tolist() == [-0.5] * 3 and still.tolist() == [1.0] * 3


def test_no_limit_only_measures() -> None:
    method = Two()
    before = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    norm = clip_gradients(method, None, "tensor")
    torch.testing.assert_close([p.grad for p in method.parameters()], before)
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in before]).norm())


def test_weight_decay_follows_its_cosine_in_decayed_groups_alone() -> None:
    config = adamw.Config(base_lr=1.0, weight_decay=0.04, weight_decay_end=0.4)
    optimizer = config.build(param_groups(Two(), config.weight_decay))
    for step, expected in ((0, 0.04), (5, 0.22), (10, 0.4)):
        set_rates(optimizer, config, 1.0, Progress(step, 10, step / 5, 2.0))
        assert {g["decays"]: g["weight_decay"] for g in optimizer.param_groups} == {
            True: pytest.approx(expected),
            False: 0.0,
        }


def test_the_end_of_a_run_cuts_stretched_schedules_off() -> None:
    """Rates and weight decay of a run of 8 epochs are those of the first 8 of 10; the warm-up is as long."""
    config = adamw.Config(warmup_epochs=2, weight_decay=0.04, weight_decay_end=0.4)
    short, long = (kind.build(param_groups(Two(), 0.04)) for kind in (config, config))
    for step in range(16):
        set_rates(short, config.model_copy(update={"stretch": 1.25}), 1.0, Progress(step, 16, step / 2, 8.0))
        set_rates(long, config, 1.0, Progress(step, 20, step / 2, 10.0))
        for one, two in zip(short.param_groups, long.param_groups, strict=True):
            assert (one["lr"], one["weight_decay"]) == pytest.approx((two["lr"], two["weight_decay"]))


def test_steps_are_one_step_late_and_drop_at_milestones() -> None:
    ramp, schedule = Ramp(0.1, 1.0, 0.5, 1), steps.Config(milestones=(2, 3))
    rates = [schedule.at(Progress(step, 16, step / 4, 4.0), ramp) for step in range(16)]
    warm = [0.1, 0.1, 0.325, 0.55, 0.775]
    assert rates == pytest.approx([*warm, *[1.0] * 4, *[0.1] * 4, *[0.01] * 3])


def test_timm_cosine_counts_from_step_zero() -> None:
    """With 20 of 100 epochs of warm-up the rate drops to .9045 of its peak where the warm-up ends."""
    ramp = Ramp(0.0, 1.0, 0.0, 20)
    rates = [timm_cosine.Config().at(Progress(step, 1000, step / 10, 100.0), ramp) for step in (200, 201)]
    assert rates == pytest.approx([199 / 200, 0.9045085], abs=1e-6)


def test_peaks_of_the_papers() -> None:
    assert adamw.Config(base_lr=1.5e-4).peak(4096) == pytest.approx(2.4e-3)
    assert adamw.Config(base_lr=1e-4, reference_batch=512).peak(2048) == pytest.approx(4e-4)
    root = adamw.Config(base_lr=4e-3, lr_rule="sqrt", reference_batch=1024)
    assert root.peak(2048) == pytest.approx(5.657e-3, rel=1e-4)
    assert adamw.Config(base_lr=4e-3, lr_rule="none").peak(2048) == 4e-3


def test_values_are_cut_before_the_norm() -> None:
    method = Two()
    gradients = [p.grad.clamp(-2.0, 2.0) for p in method.parameters() if p.grad is not None]
    clip_gradients(method, 1.5, "global", value=2.0)
    torch.testing.assert_close([p.grad for p in method.parameters()], clipped([gradients], 1.5))


@pytest.mark.parametrize("whole", [True, False])
def test_layer_scales_hold_for_everything_or_for_the_peak_alone(whole: bool) -> None:
    config = adamw.Config(base_lr=1.0, min_lr=0.1, warmup_epochs=2.0, warmup_lr=0.2, scale_minimum=whole)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_scale": 0.5, "decays": True}], lr=0.0)
    rates = []
    for epoch in (0.0, 1.0, 2.0, 10.0):
        set_rates(optimizer, config, 1.0, Progress(0, 1, epoch, 10.0))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.05] if whole else [0.2, 0.35, 0.5, 0.1])


@pytest.mark.parametrize(("batch", "growth"), [(512, 1.0), (2048, 4.0), (256, 0.5)])
def test_both_ends_grow_with_the_batch_where_told(batch: int, growth: float) -> None:
    """SimMIM's `main_simmim.py` multiplies peak, warm-up and minimum alike."""
    ends = {"min_lr": 2.5e-7, "warmup_lr": 5e-7, "warmup_epochs": 2.0, "base_lr": 1e-4, "reference_batch": 512}
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_scale": 1.0, "decays": True}], lr=0.0)
    for grown, config in ((growth, adamw.Config(**ends, scale_ends=True)), (1.0, adamw.Config(**ends))):
        rates = []
        for epoch in (0.0, 2.0, 10.0):
            set_rates(optimizer, config, config.peak(batch), Progress(0, 1, epoch, 10.0))
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([5e-7 * grown, 1e-4 * growth, 2.5e-7 * grown])


class Steady(Two):
    """Two, whose head keeps its rate."""

    def keeps_rate(self, name: str) -> bool:
        return name.startswith("head.")


def test_a_group_that_keeps_its_rate_stays_at_the_peak_after_the_warm_up() -> None:
    config, method = adamw.Config(base_lr=1.0, min_lr=0.1, warmup_epochs=2.0, warmup_lr=0.2), Steady()
    optimizer = config.build(param_groups(method, config.weight_decay))
    names = {parameter: name.partition(".")[0] for name, parameter in method.named_parameters()}
    rates: dict[str, list[float]] = {"backbone": [], "head": []}
    for epoch in (0.0, 1.0, 2.0, 6.0, 10.0):
        set_rates(optimizer, config, 1.0, Progress(0, 1, epoch, 10.0), watched=0.5 if epoch == 10 else 1.0)
        for name, found in rates.items():
            groups = [g for g in optimizer.param_groups if {names[p] for p in g["params"]} == {name}]
            assert [g["keeps_rate"] for g in groups] == [name == "head"] * 2, "weights, and biases without decay"
            found += {g["lr"] for g in groups}
    assert rates == {
        "backbone": pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1]),
        "head": pytest.approx([0.2, 0.6, 1.0, 1.0, 1.0]),
    }


def test_a_plateau_is_level_after_its_warm_up_and_lowered_by_what_is_watched() -> None:
    config = adamw.Config(base_lr=1.0, min_lr=0.2, warmup_epochs=2.0, schedule=plateau.Config())
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_scale": 1.0, "decays": True}], lr=0.0)
    rates = []
    for epoch, watched in ((1.0, 1.0), (2.0, 1.0), (9.0, 1.0), (9.0, 0.5), (9.5, 0.1)):
        set_rates(optimizer, config, 1.0, Progress(0, 1, epoch, 10.0), watched)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.2])


def test_a_cosine_per_epoch_stands_still_within_one() -> None:
    ramp, per_epoch = Ramp(0.0, 1.0, 0.0, 0.0), 7
    rates = [cosine.Config(per_epoch=True).at(Progress(step, 70, step / per_epoch, 10.0), ramp) for step in range(70)]
    expected = [(1 + math.cos(math.pi * (step // per_epoch) / 10)) / 2 for step in range(70)]
    assert rates == pytest.approx(expected)


def test_lamb_is_timms_and_a_skipped_step_changes_nothing() -> None:
    from timm.optim import Lamb

    torch.manual_seed(0)
    twins = [
        [nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(i))) for i in range(3)] for _ in "ab"
    ]
    twins = [[nn.Parameter(torch.zeros(4, 3)), *some] for some in twins]
    told = [[{"params": some[:2], "weight_decay": 0.1}, {"params": some[2:], "weight_decay": 0.0}] for some in twins]
    ours = lamb.LAMB(told[0], lr=0.1, betas=(0.9, 0.999))
    theirs = Lamb(told[1], lr=0.1, betas=(0.9, 0.999), max_grad_norm=None)
    for step in range(4):
        gradients = [torch.randn(4, 3) * 10.0**-step for _ in twins[0]]
        for some in twins:
            for parameter, gradient in zip(some, gradients, strict=True):
                parameter.grad = gradient.clone()
        ours.step()
        theirs.step()
        for one, other in zip(*twins, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
    before = copy.deepcopy([p.detach() for p in twins[0]]), copy.deepcopy(ours.state_dict()["state"])
    for parameter in twins[0]:
        parameter.grad = torch.full_like(parameter, torch.nan)
    ours.found_inf = torch.ones(())
    ours.step()
    torch.testing.assert_close(([p.detach() for p in twins[0]], ours.state_dict()["state"]), before, rtol=0, atol=0)
