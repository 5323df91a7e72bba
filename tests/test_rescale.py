"""The papers' settings carried to another batch and length; what a recipe pins stays."""

from __future__ import annotations

from typing import ClassVar

import pytest

from unlabeled.pretrain.rescale import (
    Rescalable,
    Rescaled,
    Rule,
    Setting,
    check_epochs,
    rescale,
    same_share,
    same_window,
)


class Config(Rescalable, frozen=True):
    momentum: float | None = None
    warmup: float | None = None

    paper: ClassVar[Setting] = Setting(batch=1024, epochs=300, steps=375_000)
    rules: ClassVar[dict[str, Rule]] = {"momentum": Rule(0.996, same_window), "warmup": Rule(30, same_share)}


def test_a_quarter_of_the_batch_averages_over_as_many_pictures() -> None:
    config, notes = rescale(Config(), Setting(256, 100, 500_000))
    assert config.momentum**4 == pytest.approx(0.996)
    assert config.warmup == pytest.approx(10)
    assert [(note.field, note.paper) for note in notes] == [("method.momentum", 0.996), ("method.warmup", 30)]


def test_the_papers_setting_changes_nothing() -> None:
    config, notes = rescale(Config(), Setting(1024, 300, 375_000))
    assert (config.momentum, config.warmup, notes) == (0.996, 30, [])


def test_a_short_run_averages_over_a_twentieth_of_itself() -> None:
    config, _ = rescale(Config(), Setting(128, 8, 500))
    assert config.momentum == pytest.approx(1 - 1 / 25)


def test_a_pinned_value_stays() -> None:
    config, notes = rescale(Config(momentum=0.9, warmup=5), Setting(64, 3, 60_000))
    assert (config.momentum, config.warmup, notes) == (0.9, 5, [])


def test_a_method_without_rules_is_left_alone() -> None:
    from unlabeled.pretrain.methods.mae import Config as Mae

    config = Mae()
    assert rescale(config, Setting(64, 3, 60_000)) == (config, [])


def test_notes_say_why() -> None:
    _, [note] = rescale(Config(warmup=1), Setting(512, 300, 750_000))
    assert note == Rescaled(
        "method.momentum", 0.996, 0.996**0.5, "averages over as many pictures, at most a twentieth of the run"
    )


def test_a_warm_up_beyond_the_end_is_refused() -> None:
    check_epochs(Config(warmup=10), epochs=10)
    with pytest.raises(ValueError, match="warmup: found 11 epochs, but the run has 10"):
        check_epochs(Config(warmup=11), epochs=10)
