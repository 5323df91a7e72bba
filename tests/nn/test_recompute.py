"""Blocks that are computed twice: the same bits, less kept, of any architecture."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.launch.activations import activations
from unlabeled.nn import regions
from unlabeled.nn.recompute import Every, blocks_of, recompute_, recomputed
from unlabeled.nn.regions import compile_blocks_, compiling

BEIT = {"patch_size": 8, "img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "test_vit": {"img_size": 32},
    "beit_base_patch16_224": {**BEIT, "use_shared_rel_pos_bias": True},
    "eva02_tiny_patch14_224": {**BEIT, "num_heads": 1, "embed_dim": 32},
    "swin_tiny_patch4_window7_224": SWIN,
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext": {},
}


class Model(nn.Module):
    """A network and what is read off it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).float().square().mean()


class Numbered(nn.Module):
    """A block whose output depends on the number of batches so far."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x + torch.sin(self.second(self.seen.clone() * self.first(x).relu()))


def model(name: str, every: Every | None, **more: Any) -> Model:
    torch.manual_seed(0)
    made = Model(timm.create_model(name, num_classes=0, drop_path_rate=0.3, **NETWORKS.get(name, {}), **more))
    if every is not None:
        recompute_(made, every)
    return made.train()


def two_steps(trained: nn.Module, batches: tuple[Tensor, ...], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Losses, gradients and state of two steps in which the network is called for every batch."""
    torch.manual_seed(1)
    found: dict[str, Tensor] = {}
    for step in range(2):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = torch.stack([trained(batch) for batch in batches]).sum()
        loss.backward()
        found[f"loss {step}"] = loss.detach()
        for name, parameter in trained.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} of {name}"] = parameter.grad
                with torch.no_grad():
                    parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
    found |= {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    return {**found, "random state": torch.get_rng_state()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, None) for name in NETWORKS), ("test_vit", torch.bfloat16), ("test_resnet", torch.bfloat16)],
)
def test_the_same_bits(name: str, dtype: torch.dtype | None) -> None:
    """With drop path and batch normalisation, called twice a step."""
    torch.manual_seed(2)
    batches = (torch.randn(3, 3, 32, 32), torch.randn(2, 3, 32, 32))
    plain = two_steps(model(name, None), batches, dtype)
    assert torch.isfinite(plain["loss 1"])
    assert_same(plain, two_steps(model(name, "blocks"), batches, dtype))


@pytest.mark.parametrize("every", ["blocks", 1, 2, 100])
def test_the_same_bits_of_every_nth_block_with_dropout(every: Every) -> None:
    batches = (torch.randn(3, 3, 32, 32),)
    plain = two_steps(model("test_vit", None, proj_drop_rate=0.2), batches, None)
    assert_same(plain, two_steps(model("test_vit", every, proj_drop_rate=0.2), batches, None))


def test_a_block_sees_the_state_of_its_first_computation() -> None:
    def made(every: Every | None) -> Model:
        torch.manual_seed(0)
        found = Model(nn.Sequential(Numbered(), Numbered()))
        if every is not None:
            recompute_(found, every)
        return found

    batches = (torch.randn(5, 4), torch.randn(3, 4))
    assert_same(two_steps(made(None), batches, None), two_steps(made("blocks"), batches, None))


def test_compiled_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        regions, "compiled", lambda function: torch.compile(function, backend="aot_eager_decomp_partition")
    )
    batches = (torch.randn(2, 3, 16, 16),)
    found: list[dict[str, Tensor]] = []
    for every in (None, "blocks"):
        torch.manual_seed(0)
        trained = Model(nn.Sequential(nn.Conv2d(3, 8, 4, 4), BasicBlock(8, 8), BasicBlock(8, 8)))
        if every is not None:
            recompute_(trained, every)
        compile_blocks_(trained)
        with compiling(True):
            found.append(two_steps(trained, batches, None))
    assert_same(*found)


def test_results_that_are_known_already_have_their_own_layout() -> None:
    """Counted on the meta device, where the shape of each operation is found once."""
    square = torch.empty(4, 4, device="meta")
    inputs = (square, square.t(), square.double(), square, square[:, :2])
    found: list[Tensor] = []
    activations(lambda: found.extend(each * 2 for each in inputs), nn.Module())
    assert [(one.shape, one.stride(), one.dtype) for one in found] == [
        ((4, 4), (4, 1), torch.float32),
        ((4, 4), (1, 4), torch.float32),
        ((4, 4), (4, 1), torch.float64),
        ((4, 4), (4, 1), torch.float32),
        ((4, 2), (2, 1), torch.float32),
    ]
    assert len({one.untyped_storage()._cdata for one in found}) == len(inputs), "each counts"


# ---------------------------------------------------------------- which blocks


@pytest.mark.parametrize(
    ("network", "blocks"),
    [
        ("test_vit", {"Block": 6}),
        ("resnet50", {"Bottleneck": 16}),
        ("convnext_tiny", {"ConvNeXtBlock": 18}),
        ("swin_tiny_patch4_window7_224", {"SwinTransformerBlock": 12}),
        ("hiera_tiny_224", {"HieraBlock": 12}),
        ("eva02_tiny_patch14_224", {"EvaBlock": 12}),
        ("mobilenetv3_small_100", {"DepthwiseSeparableConv": 1, "InvertedResidual": 10}),
        ("regnetx_002", {"RegStage": 2, "Bottleneck": 11}),
        ("densenet121", {"DenseLayer": 58}),
    ],
)
def test_blocks_of_timms_networks(network: str, blocks: dict[str, int]) -> None:
    with torch.device("meta"):
        found = blocks_of(timm.create_model(network, num_classes=0))
    # layers between stages may count
    assert blocks.items() <= Counter(type(block).__name__ for block in found).items()


@pytest.mark.parametrize(
    ("network", "blocks"),
    [("efficientnet_b0", {"MBConv": 16}), ("vit_b_16", {"EncoderBlock": 12}), ("resnet18", {"BasicBlock": 8})],
)
def test_blocks_of_torchvisions_networks(network: str, blocks: dict[str, int]) -> None:
    with torch.device("meta"):
        found = blocks_of(torchvision.models.get_model(network))
    assert Counter(type(block).__name__ for block in found) == blocks


def test_every_nth_block_of_each_network() -> None:
    both = nn.ModuleList([timm.create_model("test_vit", num_classes=0), timm.create_model("test_resnet")])
    vit, resnet = (blocks_of(network) for network in both)
    assert recomputed(both, "blocks") == recomputed(both, 1) == [*vit, *resnet]
    assert recomputed(both, 3) == [vit[0], vit[3], resnet[0], resnet[3]]
    assert recomputed(both, 100) == [vit[0], resnet[0]]


def test_plain_layers_are_no_blocks() -> None:
    with torch.device("meta"):
        assert blocks_of(torchvision.models.get_model("vgg11")) == []


def test_names_stay_and_copies_are_their_own() -> None:
    plain, twice = model("test_vit", None), model("test_vit", "blocks")
    assert list(twice.state_dict()) == list(plain.state_dict())
    other = copy.deepcopy(twice)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    images = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    expected = plain(images)
    torch.manual_seed(0)
    assert torch.equal(twice(images), expected) and other(images) == 0


# ---------------------------------------------------------------- what is kept


class Alive(TorchDispatchMode):
    """The bytes of tensors that were made here and still are; those of a model are not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.own:
                    self.made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, self.bytes())
        return out

    def bytes(self) -> int:
        self.made = {key: (held, size) for key, (held, size) in self.made.items() if not held.expired()}
        return sum(size for _, size in self.made.values())


@pytest.mark.parametrize("every", [None, "blocks", 2])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_as_much_is_kept_as_is_counted(name: str, every: Every | None) -> None:
    """The count, of a network on the meta device, against the tensors of a real forward pass."""
    with torch.device("meta"):
        shape, empty = model(name, None), torch.empty(8, 3, 32, 32)
    moments = activations(lambda: shape(empty), shape, [] if every is None else recomputed(shape, every))
    trained, images = model(name, every), torch.randn(8, 3, 32, 32)
    with Alive(trained) as alive:
        loss = trained(images)
        kept = alive.bytes()
        loss.backward()
    gradients = sum(p.grad.nbytes for p in trained.parameters() if p.grad is not None)
    # copies of running statistics are not counted
    assert sum(moments[0]) == pytest.approx(kept + images.nbytes, rel=0.01)
    # backward needs gradients of activations as well
    needed = max(map(sum, moments))
    assert needed < 1.05 * (alive.peak + images.nbytes) < 1.7 * needed + gradients
