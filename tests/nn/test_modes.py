"""Networks without values have the shapes of others, and nothing is computed to fill them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.nn.modes import without_values


class Operations(TorchDispatchMode):
    """The names of operations that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("model", "more"),
    [("vit_tiny_patch16_224", {"depth": 1}), ("test_resnet", {}), ("swin_tiny_patch4_window7_224", {})],
)
def test_shapes_are_those_of_a_network_that_is_filled(model: str, more: dict[str, Any]) -> None:
    def built() -> dict[str, Any]:
        network = timm.create_model(model, **more)
        return {key: (t.shape, t.stride(), t.dtype, t.device) for key, t in network.state_dict(keep_vars=True).items()}

    with torch.device("meta"), Operations() as filled:
        expected = built()
    with without_values(), Operations() as ran:
        assert built() == expected
    fills = {"uniform_", "normal_", "clamp_", "erfinv_", "fill_", "zero_"}
    assert fills & set(filled.names) and not fills & set(ran.names)


def test_tensors_elsewhere_are_filled() -> None:
    with without_values():
        assert torch.empty(3).is_meta
        assert torch.nn.init.constant_(torch.empty(3, device="cpu"), 2).tolist() == [2, 2, 2]
