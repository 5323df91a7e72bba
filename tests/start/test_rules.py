"""The table of rules: every row can be reached, every machine and set of pictures is covered, its words are true."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictured import grid

from unlabeled.recipe import shipped
from unlabeled.report import markdown
from unlabeled.start.facts import Facts
from unlabeled.start.rules import ARITHMETIC, FIELDS, PAPER, RULES, UNMEASURED, Rule, choose, document

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reached() -> dict[Rule, Facts]:
    """Every row that machines and sets of the grid reach, and the first of them."""
    found: dict[Rule, Facts] = {}
    for facts in grid():
        chosen = choose(facts)
        assert tuple(chosen) == FIELDS
        found = dict.fromkeys(chosen.values(), facts) | found
    return found


def test_all_is_covered_and_every_row_is_reached(reached: dict[Rule, Facts]) -> None:
    assert set(RULES) == reached.keys()


def test_a_field_ends_with_a_row_that_always_holds() -> None:
    for field in FIELDS:
        rows = [rule.when for rule in RULES if rule.field == field]
        assert rows[-1] == "" and "" not in rows[:-1]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field}-{rule.when or 'else'}")
def test_a_row_names_what_there_is(rule: Rule, reached: dict[Rule, Facts]) -> None:
    facts = reached[rule]
    assert rule.reason(facts) and "{" not in rule.reason(facts)
    assert rule.evidence in (ARITHMETIC, PAPER, UNMEASURED) or (ROOT / rule.evidence).is_file()
    if rule.field == "recipe":
        assert shipped.find(str(rule.take), "pretrain").is_file()


def test_the_first_row_that_holds_wins() -> None:
    facts = Facts(pictures=2000, side=160, device="cpu", cores=2, minutes=30)
    chosen = choose(facts)
    for field, rule in chosen.items():
        before = [one for one in RULES[: RULES.index(rule)] if one.field == field]
        assert rule.holds(facts, chosen) and not any(one.holds(facts, chosen) for one in before)


@pytest.mark.parametrize("cores", [2, 4, 8])
def test_a_laptop_with_two_thousand_photos_gets_contrast_with_a_small_network(cores: int) -> None:
    chosen = choose(Facts(pictures=2000, side=160, device="cpu", cores=cores, minutes=30))
    taken = {field: rule.take for field, rule in chosen.items()}
    assert taken["recipe"] == "photos_cpu" and taken["begin"] == "scratch"
    assert taken["network"] in ("test_resnet", "resnet10t") and taken["size"] in (64, 96)


@pytest.mark.parametrize(("cores", "words"), [(1, "30 minutes of 1 core:"), (2, "30 minutes of 2 cores:")])
def test_reasons_count_in_words(cores: int, words: str) -> None:
    facts = Facts(pictures=2000, side=160, device="cpu", cores=cores, minutes=30)
    assert choose(facts)["network"].reason(facts).startswith(words)


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    table = document().parts[-1]
    assert markdown.write(document()._replace(title="", parts=[table])).strip() in text
