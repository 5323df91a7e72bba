"""iBOT with the options of DINOv3: Gram anchoring, a norm of small crops, rotary positions that are rescaled."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from every_method import batch_of, build, recipe_of
from naive_dinov3 import encode, weights
from torch import Tensor

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.families.rope import sines_and_cosines
from unlabeled.backbone.importing import importers
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.data.view.twin import twin
from unlabeled.errors import UserError
from unlabeled.nn.loss.spread import koleo
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.gram import Gram, Negatives, Pairs, gram
from unlabeled.pretrain.method import Progress
from unlabeled.train.state import split_heads

ENCODER = (
    "method.encoder={model: vit_small_patch16_dinov3_qkvb, patch_size: 4, width: 16, depth: 1, heads: 2, "
    "init_values: 1.0}"
)
OPTIONS = [
    ENCODER,
    "method.gram={start: 0.3, every: 0.2, times: 2}",
    "method.local_norm=true",
    "method.koleo=0.1",
    "method.koleo_neighbours=2",
    "method.targets=sinkhorn",
    "method.momentum=0.5",
    *(f"method.{part}={{prototypes: 16, hidden: 16, bottleneck: 8}}" for part in ("head", "patch_head")),
]


def at(step: int) -> Progress:
    return Progress(step, 10, step / 5, 2.0)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- losses


def naive_gram(student: Tensor, teacher: Tensor, pairs: Pairs, negatives: Negatives, normalise: bool) -> float:
    """Pair by pair, in double precision."""
    total, count = 0.0, 0
    places = [(b, n) for b in range(student.shape[0]) for n in range(student.shape[1])]
    for b, n in places:
        for other, m in places:
            if pairs == "picture" and other != b:
                continue
            similarity = []
            for x in (student.double(), teacher.double()):
                one, two = x[b, n], x[other, m]
                similarity.append(float(one @ two / (one.norm() * two.norm() if normalise else 1.0)))
            ours, theirs = similarity
            theirs = max(theirs, 0.0) if negatives != "keep" else theirs
            ours = max(ours, 0.0) if negatives == "drop" else ours
            total, count = total + (ours - theirs) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("negatives", ["keep", "drop", "drop_teacher"])
@pytest.mark.parametrize("pairs", ["picture", "batch"])
def test_gram_is_the_mean_over_pairs(pairs: Pairs, negatives: Negatives, normalise: bool) -> None:
    student, teacher = randn(3, 5, 7, seed=1), randn(3, 5, 7, seed=2)
    expected = naive_gram(student, teacher, pairs, negatives, normalise)
    assert gram(student, teacher, pairs, negatives, normalise).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rows", "neighbours"), [(5, 2), (9, 3), (3, 7)])
def test_koleo_of_several_neighbours(rows: int, neighbours: int) -> None:
    """As many as there are others, at most."""
    x = randn(rows, 6, seed=3)
    unit, distances = F.normalize(x.double()), []
    for i in range(rows):
        others = sorted(float((unit[i] - unit[j]).norm()) for j in range(rows) if j != i)
        distances += others[:neighbours]
    expected = -sum(math.log(d) for d in distances) / len(distances)
    assert koleo(x, neighbours=neighbours).item() == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- the Gram teacher


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"every": 0.5}, [4, 9]),
        ({"start": 0.5}, [4]),
        ({"start": 0.5, "every": 0.2}, [4, 6, 8]),
        ({"start": 0.2, "every": 0.1, "times": 2}, [1, 2, 3]),
        ({"every": 0.001}, list(range(10))),
    ],
)
def test_when_the_gram_teacher_is_renewed(settings: dict[str, Any], expected: list[int]) -> None:
    """After these steps of ten."""
    config = Gram(**settings)
    assert [step for step in range(10) if config.renewed(at(step))] == expected
    assert [config.on(at(step)) for step in range(10)] == [step >= 10 * config.start for step in range(10)]


def steps(method: Any, batch: Any, numbers: range) -> dict[str, Tensor]:
    """The state after steps of gradient descent."""
    for number in numbers:
        output = method(batch, at(number))
        assert ("gram_loss" in output.metrics) == (number >= 3)
        method.zero_grad()
        output.loss.backward()
        with torch.no_grad():
            for parameter in (p for p in method.parameters() if p.requires_grad):
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
        method.after_step(at(number), torch.tensor(False))
    return cast("dict[str, Tensor]", {name: tensor.clone() for name, tensor in method.state_dict().items()})


def test_the_gram_teacher_is_the_average_of_its_time_and_goes_with_the_state() -> None:
    method, again, batch = build("ibot", *OPTIONS).train(), build("ibot", *OPTIONS).train(), batch_of("ibot", *OPTIONS)
    at_four = steps(method, batch, range(4))
    at_five = steps(method, batch, range(4, 5))
    gram_of = {name: tensor for name, tensor in at_five.items() if name.startswith("gram.encoder.")}
    then = {n.replace("teacher.", "gram.encoder."): t for n, t in at_five.items() if n.startswith("teacher.")}
    assert all(torch.equal(gram_of[name], tensor) for name, tensor in then.items()) and len(then) == len(gram_of)
    assert any(not torch.equal(tensor, at_four[name]) for name, tensor in gram_of.items())
    whole = steps(method, batch, range(5, 8))
    again.load_state_dict(at_five)
    resumed = steps(again, batch, range(5, 8))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    heads = split_heads(cast("Any", method))[1]
    assert "local_norm.weight" in heads and not any(name.startswith("gram.") for name in heads)


def test_its_crops_are_the_same_boxes_without_colours_and_change_no_other_draw() -> None:
    recipe = recipe_of("ibot", "method.gram={size: 1.0}")
    views, source = recipe.method.views, Opened(recipe.data).train
    assert [view.again for view in views] == [None, None, None, 0, 1]
    assert [view.shape for view in recipe_of("ibot", "method.gram={}").method.views[3:]] == [(64, 64)] * 2
    positions = list(next(iter(EpochSampler(42, 8, 1, seed=0))))
    for uncut in (False, True):
        both, alone = (ViewDataset(source, some, 4, 0, uncut=uncut) for some in (views, views[:3]))
        for position in positions:
            crops, others = both[position].crops, alone[position].crops
            for number in (0, 1):
                assert torch.equal(crops[3 + number].pixels, crops[number].pixels) and crops[3 + number].colours is None
            for crop, other in zip(crops, others, strict=False):
                assert torch.equal(crop.pixels, other.pixels)
                assert crop.colours is None or torch.equal(cast("Any", crop.colours).jitter, other.colours.jitter)


def test_a_twin_shows_the_same_box_larger() -> None:
    recipe = recipe_of("ibot", "method.global_1.interpolation=bilinear")
    view = recipe.method.views[0]
    picture = torch.linspace(0, 255, 48).round().to(torch.uint8).expand(3, 48, 48).contiguous()
    small, large = (
        one.sample(picture, np.random.default_rng(5), 4).pixels[0].float() for one in (view, twin(view, 0, 2.0))
    )
    assert large.shape == (3, 64, 64)
    assert (F.avg_pool2d(large, 2) - small).abs().max() <= 2


def test_every_step_draws_one_size_for_all_views() -> None:
    """By the shares, the same for the whole batch; the Gram teacher's views follow."""
    large, small = "[[3, 24], [1, 32]]", "[[3, 8], [1, [16, 12]]]"
    sizes = [f"method.global_{number}.sizes={large}" for number in (1, 2)]
    options = [
        *OPTIONS,
        *sizes,
        f"method.local={{count: 1, size: [16, 12], sizes: {small}}}",
        "method.gram={size: 1.5}",
    ]
    recipe = recipe_of("ibot", *options)
    dataset = ViewDataset(Opened(recipe.data).train, recipe.method.views, 4, seed=0)
    found: list[tuple[tuple[int, ...], ...]] = []
    for positions in EpochSampler(42, 3, 8, seed=0):
        crops = [dataset[position].crops for position in positions]
        shapes = {tuple(tuple(crop.pixels.shape[-2:]) for crop in one) for one in crops}
        assert len(shapes) == 1
        found += shapes
    smaller = ((24, 24), (24, 24), (8, 8), (36, 36), (36, 36))
    larger = ((32, 32), (32, 32), (16, 12), (48, 48), (48, 48))
    assert set(found) == {smaller, larger}
    drawn = [recipe.method.views[2].at(0, step).shape for step in range(400)]
    assert drawn[:8] == [one[2] for one in found]
    assert abs(drawn.count((8, 8)) - 300) < 4.5 * math.sqrt(400 * 3 / 16)
    method, positions = build("ibot", *options), next(iter(EpochSampler(42, 3, 1, seed=0)))
    cpu = torch.device("cpu")
    raw = collate([dataset[position] for position in positions])
    assert method(to_device(raw, cpu, Normalize((0.5,) * 3, (0.2,) * 3, cpu)), at(0)).loss.isfinite()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "method.gram={size: 1.3}",
            r"that are cut again at another size \(gram.size\): patch_size 4 does not",
        ),
        ("method.gram={start: 1.0}", "gram.start"),
        ("method.global_1.sizes=[[1, 64]]", r"expected the largest of sizes \[64\], found 32"),
        ("method.global_2.sizes=[[1, 16], [1, 32]]", r"of one size, found \(32, 32\) and \[\(1.0, 16\), \(1.0, 32\)\]"),
        ("method.local.sizes=[[1, 16], [1, 10]]", "patch_size 4 does not divide a crop of 10x10 pixels"),
        ("method={name: ibot, local: null, local_norm: true}", "local_norm is for small crops and a vision"),
        ("method.encoder.rope_rescale=2", "'vit_tiny_patch16_224' has no rotary positions: leave rope_rescale out"),
        ("method.encoder={model: eva02_tiny_patch14_224, rope_rescale: 2}", "are not DINOv3's: leave rope_rescale out"),
    ],
)
def test_what_cannot_be(override: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        recipe_of("ibot", override)


def test_sizes_of_other_methods_and_other_shares() -> None:
    with pytest.raises(UserError, match="MAE sees crops of one size: set size, leave sizes out"):
        recipe_of("mae", "method.view.sizes=[[1, 16], [1, 32]]")
    both = [f"method.{view}.sizes=[[1, 16], [1, 32]]" for view in ("global_1", "global_2")]
    with pytest.raises(UserError, match=r"the same shares of sizes in all views, found \(1.0,\) and \(1.0, 1.0\)"):
        recipe_of("ibot", *both, "method.local.sizes=[[1, 16]]")


# ---------------------------------------------------------------- the network


def test_prefix_tokens_of_another_norm() -> None:
    """As the network with that norm in the place of its own."""
    official = weights(width=24, heads=3, registers=2, depth=2, hidden=40, gated=True)
    imported = importers()["dinov3"].convert(official, None, "teacher")
    encoder = build_encoder(imported.architecture, imported.arguments).train()
    encoder.vit.load_state_dict(imported.encoder)
    norm = torch.nn.LayerNorm(24, 1e-5)
    norm.load_state_dict({name: official[f"local_cls_norm.{name}"] for name in ("weight", "bias")})
    images = randn(2, 3, 24, 16, seed=6)
    swapped = {**official, "norm.weight": norm.weight.detach(), "norm.bias": norm.bias.detach()}
    expected = torch.stack([encode(swapped, image, 3)[:3] for image in images]).float()
    torch.testing.assert_close(encoder.prefix(images, norm), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.prefix(images), encoder(images).prefix)


def test_positions_are_rescaled_by_one_factor_in_training() -> None:
    config = EncoderConfig(model="vit_small_patch16_dinov3", patch_size=4, width=16, depth=2, heads=2, rope_rescale=2.0)
    encoder: Any = config.build((16, 16))
    encoder.initialise_("dino")
    rope = encoder.vit.rope
    plain = sines_and_cosines(rope, (3, 5))
    factors = []
    for _ in range(200):
        sines, cosines = sines_and_cosines(rope, (3, 5), 2.0).chunk(2, dim=-1)
        period = rope.periods[-1] / (2 * math.pi)  # the longest: angles within half a turn
        angles = torch.atan2(sines, cosines)[:, len(rope.periods) - 1] * period
        usual = torch.atan2(*plain.chunk(2, dim=-1))[:, len(rope.periods) - 1] * period
        ratio = (angles / usual)[usual.abs() > 0.1]
        assert (ratio - ratio[0]).abs().max() < 1e-4
        factors.append(ratio[0].log().item() / math.log(2))
    assert max(map(abs, factors)) <= 1 + 1e-4 and max(factors) > 0.9 and min(factors) < -0.9
    assert abs(sum(factors) / len(factors)) < 4.5 / math.sqrt(3 * len(factors))
    images, hidden = randn(2, 3, 16, 16, seed=7), PatchMask(torch.zeros(2, 16, dtype=torch.bool), None, None)
    token = torch.zeros(16)
    assert torch.equal(encoder.eval()(images).raw, encoder(images).raw)
    assert not torch.equal(encoder.train()(images).raw, encoder(images, replace=hidden, fill=token).raw)
    calm: Any = config.calm.build((16, 16)).train()
    assert torch.equal(calm(images).raw, calm(images).raw)
