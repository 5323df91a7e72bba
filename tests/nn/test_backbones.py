"""The twenty networks of timm that are used most: from the first feature to a fine-tuned classifier.

`benchmarks/backbones.py` walks one of every module in the same way.
"""

from __future__ import annotations

import sys

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import backbones


@pytest.mark.parametrize("model", backbones.USUAL)
def test_a_usual_network_does_everything(model: str) -> None:
    assert backbones.walk(model, **backbones.USUAL[model]).wrong == {}
