"""Whether all tests of a method have run in this process, so that what they read is known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

# tests of each module: all there are, and those that have run
COLLECTED, RAN = pytest.StashKey[Counter[str]](), pytest.StashKey[Counter[str]]()


def modules_of(method: str) -> list[Path]:
    """The modules with a method's tests: test_dino.py and test_dino_method.py, not test_dinov2.py."""
    return [m for m in sorted(Path(__file__).parent.glob("test_*.py")) if f"{m.stem}_".startswith(f"test_{method}_")]


def ran_whole(config: pytest.Config, method: str) -> bool:
    """Whether none of a method's tests was left out or run elsewhere."""
    collected, ran = config.stash[COLLECTED], config.stash[RAN]
    named = any("::" in argument for argument in config.args)
    return not named and all(0 < collected[module.stem] == ran[module.stem] for module in modules_of(method))
