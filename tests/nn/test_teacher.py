"""The teacher follows by name; the centre counts every row once, after the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlabeled.nn.heads import DistillHead
from unlabeled.nn.teacher import Centre, ema_, follow_


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return DistillHead(6, 10, hidden=8, bottleneck=4, freeze_gain=False, norm=True), DistillHead(
        6, 10, hidden=8, bottleneck=4, freeze_gain=False, norm=True
    )


def test_follow_copies_parameters_and_buffers() -> None:
    teacher, student = pair()
    student(torch.randn(5, 6))
    follow_(teacher, student)
    assert not any(p.requires_grad for p in teacher.parameters())
    ours, theirs = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_only_the_student_has_is_left_out_and_the_other_way_raises() -> None:
    teacher, student = pair()
    student.extra = nn.Parameter(torch.ones(1))
    follow_(teacher, student)
    with pytest.raises(KeyError, match="extra"):
        follow_(student, teacher)


def test_ema_averages_every_parameter_and_no_buffer() -> None:
    teacher, student = pair()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student(torch.randn(5, 6))
    nn.init.uniform_(student.last_layer.weight_g)
    ema_(teacher, student, 0.9)
    for name, tensor in teacher.state_dict().items():
        follows = name in dict(teacher.named_parameters())
        expected = 0.9 * before[name] + 0.1 * student.state_dict()[name] if follows else before[name]
        torch.testing.assert_close(tensor, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_ema_equals_one_parameter_after_the_other_to_the_bit_even_where_parameters_are_replaced() -> None:
    teacher, student = pair()
    for network in (teacher, student):
        network.twin = network.mlp[0]  # a second name for the same parameters
    naive = [parameter.detach().clone() for parameter in teacher.parameters()]
    for step in range(3):
        for parameter in student.parameters():
            parameter.data = torch.randn_like(parameter)
        if step == 1:  # as when weights are sharded
            for network in (teacher, student):
                network.last_layer.weight_v = nn.Parameter(network.last_layer.weight_v.detach().clone())
        ema_(teacher, student, 0.7)
        for kept, followed in zip(naive, student.parameters(), strict=True):
            kept.lerp_(followed.detach(), 1 - 0.7)
    assert all(torch.equal(*found) for found in zip(naive, teacher.parameters(), strict=True))


def test_a_teacher_may_change_the_student_that_it_follows() -> None:
    teacher, student = pair()
    other = pair()[1]
    for followed in (student, other):
        nn.init.constant_(followed.last_layer.weight_v, 3.0 if followed is student else 7.0)
        ema_(teacher, followed, 0.0)
    assert (teacher.last_layer.weight_v == 7).all()


def test_centre_does_not_depend_on_micro_batches() -> None:
    logits = torch.randn(6, 5)
    whole, parts = Centre(5, 0.8), Centre(5, 0.8)
    whole.note(logits, step=3)
    for part in logits.chunk(3):
        parts.note(part, step=3)
    for centre in (whole, parts):
        assert not centre.value.any(), "a step sees the centre of the steps before it"
        centre.update_()
        torch.testing.assert_close(centre.value, 0.2 * logits.mean(0))


def test_centre_forgets_a_skipped_step() -> None:
    centre = Centre(3)
    centre.note(torch.full((2, 3), torch.nan), step=7)
    centre.note(torch.ones(2, 3), step=8)
    centre.update_()
    torch.testing.assert_close(centre.value, torch.full((3,), 0.1))


def test_centre_stays_when_nothing_is_valid() -> None:
    centre = Centre(3)
    centre.value.fill_(2.0)
    centre.note(torch.ones(2, 3), step=0, valid=torch.zeros(2, dtype=torch.bool))
    centre.update_()
    assert centre.value.eq(2).all()
