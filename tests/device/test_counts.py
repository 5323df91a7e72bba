"""What a step asks of a GPU, by operators on fake tensors: a change that launches, moves or holds more, or that lets
the host wait, is refused on a machine without one."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import pytest
import torch
from every_method import recipe_of
from support import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(ROOT / "benchmarks"))
import count
from counting import Count, Counting, chunked, count_step

from unlabeled.pretrain.method import METHODS, Output
from unlabeled.pretrain.methods import mae

SHALLOW = ("method.encoder.depth=1", "train.precision=bf16")
DINOV2 = (
    *("method.patch_head={prototypes: 64, hidden: 32, bottleneck: 16}", "method.patch_centre=hidden"),
    *("method.koleo=0.1", "optim.clip=3.0", "optim.clip_by=part"),
)


class Case(NamedTuple):
    """A demo recipe with other fields, and the most that its first step on eight pictures may take."""

    method: str
    fields: tuple[str, ...]
    launches: int
    mb: float  # read and written
    peak_mb: float


CASES = {
    "mae": Case("mae", SHALLOW, 359, 30, 3.4),
    "crossmae": Case("mae", (*SHALLOW, "method.decoder={name: cross, width: 64, depth: 1, heads: 4}"), 335, 21.6, 3),
    "simmim": Case("simmim", SHALLOW, 278, 48, 4.6),
    "simclr": Case("simclr", SHALLOW, 466, 71, 6.8),
    "mocov3": Case("mocov3", SHALLOW, 744, 95.6, 9.8),
    "mocov3 of a CNN": Case("mocov3", ("method.encoder={model: test_resnet}", "train.precision=bf16"), 1171, 87.1, 9.1),
    "simsiam": Case("simsiam", SHALLOW, 508, 70.5, 6.3),
    "byol": Case("byol", SHALLOW, 703, 90.4, 9.2),
    "barlowtwins": Case("barlowtwins", SHALLOW, 579, 78.1, 7.1),
    "vicreg": Case("vicreg", SHALLOW, 655, 79.7, 7.1),
    "dino": Case("dino", SHALLOW, 1044, 144.8, 13.5),
    "ibot": Case("ibot", SHALLOW, 1140, 181.2, 13.4),
    "dinov2": Case("ibot", (*SHALLOW, *DINOV2), 1322, 154.1, 11.4),
    "dinov3": Case("ibot", (*SHALLOW, *DINOV2, "method.targets=sinkhorn"), 1340, 155.8, 11.4),
    "simdino": Case("dino", (*SHALLOW, "method.coding_rate={}"), 1034, 133, 12.7),
    "swav": Case("swav", SHALLOW, 784, 93.6, 7.5),
    "msn": Case("msn", SHALLOW, 1069, 87.3, 6.2),
    "lejepa": Case("lejepa", SHALLOW, 729, 100, 8.1),
    "ijepa": Case("ijepa", SHALLOW, 455, 50.8, 5.5),
    "distill": Case("distill", SHALLOW, 545, 125.2, 16.2),
    "spark": Case("spark", ("train.precision=bf16",), 1298, 130.5, 15.4),
}
# flags that are read, and the first step of a parameter, which has no state yet
AGREEING = {"queued.py:read", "optim.py:step"}


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_no_more_of_a_gpu_than_it_did(name: str) -> None:
    case = CASES[name]
    count = count_step(recipe_of(case.method, *case.fields), 8, warm=False)
    assert set(count.waits) <= AGREEING, "the host waits for the device"
    found = {"launches": count.launches, "mb": count.bytes / 1e6, "peak_mb": count.peak / 1e6}
    assert {what: value for what, value in found.items() if value > getattr(case, what)} == {}


def test_every_method_is_counted() -> None:
    assert {case.method for case in CASES.values()} == set(METHODS.names())


def test_waits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss whose value is read, as by a log line."""
    forward = mae.MAE.forward

    def read(self: mae.MAE, *given: Any) -> Output:
        output = forward(self, *given)
        assert output.loss.item() == 0 and not output.loss.view(1).nonzero().numel()
        return output

    monkeypatch.setattr(mae.MAE, "forward", read)
    waits = count_step(recipe_of("mae", *SHALLOW), 8, warm=False).waits
    assert [one for one in waits if one not in AGREEING] == ["test_counts.py:read"] * 2


def test_operators_by_hand() -> None:
    """A product [2, 3] x [3, 4] in float32, twice; 24 values of 4 bytes are read or written by an addition in place."""
    counting = Counting()
    with FakeTensorMode(), counting:
        a, b = torch.empty(2, 3), torch.empty(3, 4)
        held = counting.held
        counting.begin()
        c = a @ b
        c = (a @ b).view(4, 2).add_(1)
        assert counting.count.launches == 3 and counting.count.flop == 2 * 2 * (2 * 3 * 4)
        assert counting.count.bytes == 4 * (2 * (6 + 12 + 8) + 2 * 8)
        assert counting.count.peak == held + 2 * 4 * 8 and counting.held == held + 4 * 8
        del c
        assert counting.held == held and not counting.count.waits


def test_lists_are_launched_by_chunks() -> None:
    """As `multi_tensor_apply` does: 110 tensors of one list, or 320 chunks of 65,536 values."""
    assert chunked([1] * 110, 110) == 1 and chunked([1] * 111, 110) == 2
    assert chunked([65536 * 320], 110) == 1 and chunked([65536 * 320 + 1, 1], 110) == 2
    assert chunked([], 110) == 0


def test_the_table_of_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """64 pictures: 40 ms of the device, half of it products; 1.5 times as long where a host asks 5 us an operator."""

    def counted(recipe: Any, pictures: int, processes: int, within: object) -> Count:
        assert recipe.train.batch_size == pictures * processes and recipe.train.precision == "bf16"
        return Count(operators=12_000, seconds=0.04, multiplying=0.02, flop=7.9e12, waits=["a.py:b"])

    monkeypatch.setattr(count, "count_step", counted)
    count.main(["--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert list(json.loads(last)) == list(count.ROWS)
    row = next(line for line in lines if line.startswith("| dinov2-L-64"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == (
        ["12,000", "0", "0.0", "7.9", "0", "10.0", "40.0", "0.0", "0.0", "0", "1", "0", "1,067-1,067", "2,000"]
    )
