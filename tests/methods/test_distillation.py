"""DINO and iBOT beyond the contract: what the teacher sees, DINOv2's options, and processes."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from support import on_processes
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import mean_over_processes, rank, world
from unlabeled.nn.heads import HeadConfig
from unlabeled.nn.loss.spread import CodingRate
from unlabeled.nn.patches import PatchMask, hidden_rows
from unlabeled.pretrain.method import Method, Progress
from unlabeled.pretrain.methods import dino, ibot
from unlabeled.train.optim import param_groups, set_rates
from unlabeled.train.optimizers import adamw
from unlabeled.train.schedules import plateau

START = Progress(0, 100, 0.0, 10.0)
ROWS, PATCHES = 4, 16
WHOLE, LOCAL = View(size=16), View(size=8, count=2)
MASKED = View(size=16, mask=BlockMask())
ENCODER = EncoderConfig(
    model="vit_tiny_patch16_224",
    patch_size=4,
    width=24,
    depth=2,
    heads=2,
    positions="learned",
    interpolation="scale",
)
HEAD = HeadConfig(prototypes=20, hidden=16, bottleneck=8)
DINO = dino.Config(global_1=WHOLE, global_2=WHOLE, local=LOCAL, encoder=ENCODER, head=HEAD)
IBOT = ibot.Config(global_1=MASKED, global_2=MASKED, local=LOCAL, encoder=ENCODER, head=HEAD)
DINOV2 = ibot.Config(
    global_1=MASKED,
    global_2=MASKED,
    local=LOCAL,
    encoder=ENCODER.model_copy(update={"registers": 2, "init_values": 0.1}),
    head=HEAD.model_copy(update={"freeze_gain": False}),
    patch_head=HeadConfig(prototypes=12, hidden=16, bottleneck=6, freeze_gain=False),
    targets="sinkhorn",
    koleo=0.1,
    layer_decay=0.9,
    patch_embed_lr=0.2,
)
CONFIGS: dict[str, Any] = {
    "dino": DINO,
    "ibot": IBOT,
    "ibot, separate": IBOT.model_copy(update={"patch_prototypes": 12}),
    "ibot, default flags": IBOT.model_copy(update={"patch_prototypes": HEAD.prototypes, "teacher_shares": True}),
    "ibot, no biases": IBOT.model_copy(update={"head": HEAD.model_copy(update={"bias": False})}),
    "simdino": DINO.model_copy(update={"coding_rate": CodingRate()}),
    "simdinov2": IBOT.model_copy(update={"coding_rate": CodingRate(of="student", weight=0.5)}),
    "dinov2": DINOV2,
    "dinov2, centred": DINOV2.model_copy(update={"targets": "centre", "patch_centre": "hidden"}),
}


def build(config: Any) -> Method:
    torch.manual_seed(0)
    return config.build()


def batch(config: Any, first: int = 0, last: int = ROWS) -> Batch:
    """Rows of one fixed global batch. Crops hide 0 to 9 patches."""
    generator = torch.Generator().manual_seed(1)
    views = []
    for view in config.views:
        pixels = torch.randn(view.count, ROWS, 3, *view.shape, generator=generator)[:, first:last]
        if view.mask is None:
            views.append(ViewBatch(pixels, None))
        else:
            noise = torch.rand(1, ROWS, PATCHES, generator=generator)
            hidden = (noise < torch.tensor([0.0, 0.2, 0.5, 0.4]).view(1, ROWS, 1))[:, first:last]
            views.append(ViewBatch(pixels, PatchMask(hidden, None, None), int(hidden.sum())))
    return Batch(views, torch.zeros(last - first), torch.zeros(last - first))


# ---------------------------------------------------------------- parts of a forward


def test_hidden_rows_in_one_padded_list() -> None:
    hidden = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    index, weight = hidden_rows(hidden, rows=5)
    assert index[:3].tolist() == [1, 2, 6] and len(index.unique()) == 5
    assert weight.tolist() == [0.5, 0.5, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_teacher_sees_large_crops_whole_and_drops_no_path(name: str) -> None:
    config = CONFIGS[name].model_copy(update={"encoder": CONFIGS[name].encoder.model_copy(update={"drop_path": 0.5})})
    model, seen = build(config), []
    model.teacher.register_forward_pre_hook(lambda _m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    data = batch(config)
    model(data, START)
    ((images,), kwargs), *others = seen
    assert not others and not kwargs
    assert torch.equal(images, torch.cat([view.flat()[0] for view in data.views[:2]]))
    dropping = [part for part in model.modules() if type(part).__name__ == "DropPath"]
    assert dropping and not any(part in set(model.teacher.modules()) for part in dropping)


@pytest.mark.parametrize("config", [IBOT, DINOV2])
def test_hidden_pixels_reach_the_teacher_but_not_the_student(config: Any) -> None:
    model, data = build(config), batch(config)
    hidden = data.views[0].mask.hidden.view(1, ROWS, 1, 4, 4)  # type: ignore[union-attr]
    spoilt = torch.where(hidden.repeat_interleave(4, -2).repeat_interleave(4, -1), 9.0, data.views[0].pixels)
    other = Batch([data.views[0]._replace(pixels=spoilt), *data.views[1:]], data.labels, data.index)
    outputs: dict[str, list[Tensor]] = {"encoder": [], "teacher": []}
    for part, caught in outputs.items():
        getattr(model, part).register_forward_hook(lambda _m, _i, out, caught=caught: caught.append(out.patches))
    model(data, START)
    model(other, START)
    student, teacher = outputs["encoder"], outputs["teacher"]
    assert torch.equal(student[0], student[2]) and not torch.equal(teacher[0], teacher[1])


class OfficialHead(nn.Module):
    """The last layers of official `iBOTHead`, by its names: one module under two names where they are shared."""

    def __init__(self, like: nn.Module, shared: bool) -> None:
        super().__init__()
        self.last_layer = copy.deepcopy(like)
        self.last_layer2 = self.last_layer if shared else copy.deepcopy(like)


def test_a_teacher_that_shares_follows_as_in_the_official_code() -> None:
    """`load_state_dict`, then an average over the names that student and teacher have in common."""
    config = CONFIGS["ibot, default flags"]
    model, progress = build(config), Progress(3, 10, 1.5, 5.0)
    assert isinstance(model, ibot.IBOT) and model.teacher_head.patch_layer is None
    ours = model.head.last_layer, model.head.patch_layer
    student, teacher = OfficialHead(ours[0], shared=False), OfficialHead(ours[0], shared=True)
    for name, layer in zip(("last_layer", "last_layer2"), ours, strict=True):
        getattr(student, name).load_state_dict(layer.state_dict())
    teacher.load_state_dict(student.state_dict(), strict=False)
    assert_equal(model.teacher_head.last_layer, teacher.last_layer)
    assert_equal(model.teacher_head.last_layer, model.head.patch_layer)

    # the two layers move apart, then the teacher follows
    for layer, official in zip(ours, (student.last_layer, student.last_layer2), strict=True):
        nn.init.normal_(layer.weight_v)
        official.load_state_dict(layer.state_dict())
    model(batch(config), progress)
    model.after_step(progress)
    assert model.config.momentum is not None
    momentum = 1 + (model.config.momentum - 1) * 0.5 * (1 + math.cos(math.pi * 3 / 10))
    queries, keys = dict(student.named_parameters()), dict(teacher.named_parameters())
    with torch.no_grad():
        for name in queries.keys() & keys.keys():
            keys[name].mul_(momentum).add_((1 - momentum) * queries[name])
    for name, tensor in model.teacher_head.last_layer.named_parameters():
        torch.testing.assert_close(tensor, teacher.last_layer.get_parameter(name))


def test_a_teacher_that_shares_answers_both_from_one_layer() -> None:
    """And the student from two: each loss hears of its own, the teacher's layer is heard in both."""
    config = CONFIGS["ibot, default flags"]

    def losses(*touched: str) -> tuple[float, float]:
        model = build(config)
        for name in touched:
            nn.init.normal_(model.get_submodule(name).weight_v, generator=torch.Generator().manual_seed(5))
        metrics = model(batch(config), START).metrics
        return metrics["class_loss"].item(), metrics["patch_loss"].item()

    classes, patches = losses()
    for name, changes in {
        "head.last_layer": (True, False),
        "head.patch_layer": (False, True),
        "teacher_head.last_layer": (True, True),
    }.items():
        found = losses(name)
        assert (found[0] != classes, found[1] != patches) == changes, name


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_heads_without_biases() -> None:
    head = build(CONFIGS["ibot, no biases"]).get_submodule("head.mlp")
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


def test_patch_centre_is_the_mean_of_all_patches_logits() -> None:
    """Computed from the mean of what the prototypes see, which is the same."""
    model = build(IBOT)
    assert isinstance(model, ibot.IBOT)
    data = batch(IBOT)
    model(data, START)
    model.after_step(START)
    with torch.no_grad():
        tokens = model.teacher(torch.cat([view.flat()[0] for view in data.views[:2]]))
        expected = 0.1 * model.teacher_head.patches(tokens.patches).flatten(0, 1).mean(0)
    torch.testing.assert_close(model.patch_centre.value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["simdino", "simdinov2"])
def test_a_coding_rate_has_no_prototypes_temperatures_and_centres(name: str) -> None:
    config, data = CONFIGS[name], batch(CONFIGS[name])
    model = build(config)
    output, other = model(data, START), build(config.model_copy(update={"student_temperature": 0.2}))(data, START)
    model.after_step(START)
    assert not [key for key in model.state_dict() if "last_layer" in key] and not list(model.frozen(START))
    assert torch.equal(output.loss, other.loss) and not model.get_buffer("centre.value").any()
    metrics = {key: value.item() for key, value in output.metrics.items()}
    loss = metrics["class_loss"] if name == "simdinov2" else output.loss.item()
    weight = config.coding_rate.weight
    assert loss == pytest.approx(-weight * metrics["compression"] - metrics["coding_rate"], rel=1e-5)


def test_patches_begin_when_told() -> None:
    """Until then nothing is hidden, and the patches' temperature waits."""
    late, whole = (build(IBOT.model_copy(update={"patch_start_epoch": start})) for start in (2.0, 0.0))
    data = batch(IBOT)
    nothing = [
        view if view.mask is None else view._replace(mask=view.mask.map(torch.zeros_like)) for view in data.views
    ]
    before = late(data, START)
    assert before.metrics["patch_loss"] == 0
    assert torch.equal(before.loss, whole(Batch(nothing, data.labels, data.index), START).loss)
    begun = Progress(20, 100, 2.0, 10.0)
    assert late(data, begun).metrics["patch_loss"] == whole(data, START).metrics["patch_loss"] > 0


# ---------------------------------------------------------------- rules of optimisation


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dino", {"head.last_layer.weight_v"}),
        ("ibot, separate", {"head.last_layer.weight_v", "head.patch_layer.weight_v"}),
        ("dinov2", {f"{head}.last_layer.weight_{part}" for head in ("head", "patch_head") for part in "gv"}),
    ],
)
def test_the_last_layer_is_held_in_the_first_epoch(name: str, expected: set[str]) -> None:
    model = build(CONFIGS[name])
    names = {id(p): key for key, p in model.named_parameters()}
    held = {names[id(p)] for p in model.frozen(Progress(9, 100, 0.9, 10.0)) if p.requires_grad}
    assert held == expected
    assert not list(model.frozen(Progress(10, 100, 1.0, 10.0)))


def test_dinov2s_last_layers_stand_still_while_their_moments_grow() -> None:
    """Officially their learning rate is 0 in the first epochs: no decay either, but AdamW remembers gradients."""
    config = DINOV2.model_copy(update={"frozen_by": "rate", "frozen_epochs": 1.0})
    model, last = build(config), "patch_head.last_layer.weight_v"
    rates = adamw.Config(weight_decay=0.1, schedule=plateau.Config())
    optimizer = rates.build(param_groups(model, 0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for epoch in (0.0, 0.9, 1.0):
        progress = Progress(int(10 * epoch), 100, epoch, 10.0)
        assert not list(model.frozen(progress))
        set_rates(optimizer, rates, 0.01, progress)
        model(batch(config), progress).loss.backward()
        optimizer.step()
        after = dict(model.named_parameters())
        assert torch.equal(after[last], before[last]) == (epoch < 1)
        assert optimizer.state[after[last]]["exp_avg"].any()
    assert not torch.equal(after["head.mlp.0.weight"], before["head.mlp.0.weight"])


def test_registers_learn_as_the_top_does() -> None:
    """Official `param_groups.py` lists the other tokens, positions and patches as its lowest layer."""
    encoder = ENCODER.model_copy(update={"registers": 2})
    model = build(DINOV2.model_copy(update={"encoder": encoder, "layer_decay": 0.5}))
    names = ("reg_token", "norm.weight", "cls_token", "pos_embed")
    scales = [model.lr_scale(f"encoder.vit.{name}") for name in names]
    assert scales == [1.0, 1.0, *[0.5 ** (model.encoder.depth + 1)] * 2]  # type: ignore[union-attr, operator]


def test_dinov2_rates_and_clip_groups() -> None:
    model = build(DINOV2)
    scales = {
        "encoder.vit.patch_embed.proj.weight": 0.2 * 0.9**3,
        "encoder.vit.cls_token": 0.9**3,
        "mask_token": 0.9**3,
        "encoder.vit.blocks.0.attn.qkv.weight": 0.9**2,
        "encoder.vit.blocks.1.ls1.gamma": 0.9,
        "encoder.vit.norm.weight": 1.0,
        "head.mlp.0.weight": 1.0,
    }
    assert {name: model.lr_scale(name) for name in scales} == pytest.approx(scales)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    names = {id(p): key for key, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group if p.requires_grad] for group in model.clip_groups()]
    assert {key for group in groups for key in group} == trained
    assert [{key.split(".")[0] for key in group} for group in groups] == [
        {"encoder", "mask_token"},
        {"head"},
        {"patch_head"},
    ]


@pytest.mark.parametrize(
    ("config", "fields", "text"),
    [
        (DINO, {"global_1": LOCAL}, "one whole crop, found count 2"),
        (DINO, {"global_2": MASKED}, "one whole crop, found count 1 and mask"),
        (DINO, {"local": MASKED}, "whole local crops, found mask"),
        (DINO, {"global_1": View(size=32)}, r"global_1 and global_2 of one size, found \(32, 32\) and \(16, 16\)"),
        (DINO, {"local": View(size=10)}, "patch_size 4 does not divide a crop of 10x10"),
        (IBOT, {"global_1": WHOLE}, "one masked crop, found count 1 and mask None"),
        (IBOT, {"local": MASKED}, "whole local crops, found mask"),
        (DINOV2, {"patch_prototypes": 7}, "patch_prototypes or patch_head, found both"),
        (IBOT, {"teacher_shares": True}, "set patch_prototypes=20, as head.prototypes; found None"),
        (IBOT, {"teacher_shares": True, "patch_prototypes": 7}, "found 7"),
        (IBOT, {"head": {"prototypes": 1}}, "greater than or equal to 2"),
        (DINO, {"coding_rate": {}, "head": {"bottleneck": 0}}, "head.bottleneck above 0, such as 256; found 0"),
        (IBOT, {"coding_rate": {}, "head": {"bottleneck": 0}}, "head.bottleneck above 0, and no patch_head"),
        (IBOT, {"coding_rate": {}, "patch_prototypes": 7}, "no patch_head or patch_prototypes"),
    ],
)
def test_impossible_recipes_are_refused(config: Any, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        type(config)(**{**dict(config), **fields})


# ---------------------------------------------------------------- micro-batches and processes


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"koleo": 0.1}, ("KoLeo",)),
        ({"targets": "sinkhorn", "koleo": 0.1}, ("KoLeo", "Sinkhorn-Knopp")),
        ({"targets": "sinkhorn", "coding_rate": CodingRate()}, ("the coding rate",)),
    ],
)
def test_what_compares_pictures_says_so(fields: dict[str, Any], found: tuple[str, ...]) -> None:
    assert build(IBOT.model_copy(update=fields)).batch_statistics() == found


@pytest.mark.parametrize("name", ["dino", "ibot", "ibot, separate", "dinov2, centred"])
def test_two_micro_batches_are_one(name: str) -> None:
    """Gradients add up and centres are collected, where no row looks at another."""
    config = CONFIGS[name].model_copy(update={"koleo": 0.0})
    whole, parts, half = build(config), build(config), ROWS // 2
    whole(batch(config), START).loss.backward()
    for first in (0, half):
        (parts(batch(config, first, first + half), START).loss / 2).backward()
    for model in (whole, parts):
        assert not model.batch_statistics()
        model.after_step(START)
    for (key, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    for one, two in zip(whole.buffers(), parts.buffers(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


def one_step(name: str) -> dict[str, Tensor]:
    """Gradients, centres and teacher of a step on the global batch, of which each process has a part."""
    config, share = CONFIGS[name], ROWS // world()
    model = build(config)
    data = batch(config, rank() * share, (rank() + 1) * share)
    output = model(data, START)
    output.loss.backward()
    found = {"loss": mean_over_processes(output.loss)}
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad = mean_over_processes(parameter.grad)
            found[f"gradient of {key}"] = parameter.grad
            parameter.data.sub_(0.1 * parameter.grad)
    model.after_step(START)
    return found | {key: tensor for key, tensor in model.state_dict().items() if "teacher" in key or "centre" in key}


def all_steps(_rank: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    return {name: one_step(name) for name in names}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return on_processes(partial(all_steps, names=list(CONFIGS)))


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_are_one(two: list[dict[str, Any]], name: str) -> None:
    one = one_step(name)
    last = "mlp.4.weight" if name.startswith("simdino") else "last_layer.weight_v"
    assert {"loss", f"teacher_head.{last}", "centre.value"} <= one.keys()
    for found in two:
        assert found[name].keys() == one.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(
                found[name][key], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
