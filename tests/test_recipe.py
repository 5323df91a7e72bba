"""Recipes: every mistake at once with its line, nothing hostile built, exact round trips, readable help."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationInfo, computed_field, field_validator

from unlabeled.errors import UserError
from unlabeled.recipe import (
    MAX_BYTES,
    RecipeError,
    describe,
    differences,
    dump,
    format_differences,
    load,
    parse,
)
from unlabeled.recipe.changes import Difference


class Strict(BaseModel, frozen=True, extra="forbid"):
    """What recipe schemas share."""


class Mae(Strict, frozen=True):
    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1, allow_inf_nan=False, description="share of patches hidden")


class Dino(Strict, frozen=True):
    name: Literal["dino"] = "dino"
    # a field called like the other member's tag: the tag must not be taken for it
    mae: int = Field(default=3, ge=1)
    teacher: tuple[float, float] = (0.04, 0.07)


Method = Annotated[Mae | Dino, Field(discriminator="name")]


class Data(Strict, frozen=True):
    path: Path = Field(description="where the pictures are.")
    size: int | tuple[int, int] = 224
    kinds: list[Literal["jpg", "png"]] = Field(default=["jpg"], min_length=1)


class Optim(Strict, frozen=True):
    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    warmup: float | None = Field(default=None, ge=0)
    steps: int = Field(default=100, ge=1)
    decay_at: int = 10

    @field_validator("decay_at")
    @classmethod
    def _within(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("steps", value):
            raise ValueError(f"expected at most steps = {info.data['steps']}, found {value}")
        return value


class Recipe(Strict, frozen=True):
    seed: int = Field(default=0, ge=0)
    note: str = ""
    compile: bool = False
    data: Data = Field(description="the pictures")
    optim: Optim = Optim()
    method: Method = Mae()
    also: Method | None = None
    more: list[Method] = []
    encoder: Optim | str = "vit"
    shape: tuple[int, int] | list[int] | None = None
    table: dict[str, int] = {}


GOOD = "data: {path: pictures}\n"


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(Recipe, text, overrides, where="x.yaml")
    return str(caught.value).split("\n")


def test_five_mistakes_of_five_depths_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
sede: 1
data:
  path: pictures
  size: large
optim:
  lr: .nan
  steps: 0

more:
  - name: dino
    teacher:
      - 0.1
      - 0.2
  - name: mae
    mask_ratio: -1
"""
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(Recipe, file)
    assert str(caught.value).split("\n") == [
        f"{file}:1   sede: unknown field. Did you mean 'seed'?",
        f"{file}:4   data.size: expected an integer or list of 2 integers, found 'large'",
        f"{file}:6   optim.lr: expected a finite number, found .nan",
        f"{file}:7   optim.steps: expected an integer of at least 1, found 0",
        f"{file}:15  more.1.mask_ratio: expected a number greater than 0 and less than 1, found -1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: -1}", "optim.lr: expected a number greater than 0, found -1"),
        ("optim: {lr: '0.1'}", "optim.lr: expected a number greater than 0, found '0.1'"),
        ("optim: {lr: true}", "optim.lr: expected a number greater than 0, found true"),
        ("optim: {warmup: soon}", "optim.warmup: expected a number of at least 0 or null, found 'soon'"),
        ("optim: {decay_at: 101}", "optim.decay_at: expected at most steps = 100, found 101"),
        (
            "optim: {mask_ration: 1}",
            "optim.mask_ration: unknown field. Known here: lr, warmup, steps, decay_at",
        ),
        ("optim:", "optim: expected a mapping, found null"),
        ("seed: 1.0", "seed: expected an integer of at least 0, found 1.0"),
        ("note: 1e-4", 'note: expected text, found 0.0001. Quotes make it text: "0.0001"'),
        ("note:", "note: expected text, found null"),
        ("compile: yes", "compile: expected true or false, found 'yes'"),
        ("compile: 1", "compile: expected true or false, found 1"),
        ("method: {mask_ratio: 2}", "method.name: missing. It is one of: mae, dino"),
        ("method: {name: mea}", "method.name: expected one of: mae, dino, found 'mea'. Did you mean 'mae'?"),
        (
            "method: mae",
            "method: expected a mapping with name: mae, dino, found 'mae'. Did you mean {name: mae}?",
        ),
        (
            "method: {name: mae, mask_ration: 2}",
            "method.mask_ration: unknown field. Did you mean 'mask_ratio'?",
        ),
        ("method: {name: dino, mae: 0}", "method.mae: expected an integer of at least 1, found 0"),
        ("method: {name: dino, teacher: [1]}", "method.teacher: expected a list of 2 numbers, found [1]"),
        ("also: {name: dino, mae: x}", "also.mae: expected an integer of at least 1, found 'x'"),
        ("more: [{name: mae}, 3]", "more.1: expected a mapping with name: mae, dino, found 3"),
        ("encoder: {lr: 0}", "encoder.lr: expected a number greater than 0, found 0"),
        ("encoder: 3", 'encoder: expected a mapping or text, found 3. Quotes make it text: "3"'),
        ("encoder: [1, {a: b}]", "encoder: expected a mapping or text, found [1, {a: 'b'}]"),
        ("shape: [1, b]", "shape: expected a list of 2 integers or list of integers or null, found [1, 'b']"),
        ("table: {a: b}", "table.a: expected an integer, found 'b'"),
    ],
)
def test_pydantic_errors_are_told_in_plain_words(text: str, message: str) -> None:
    assert mistakes(GOOD + text) == [f"x.yaml:2  {message}"]


def test_missing_fields_name_their_meaning_and_the_way_to_give_them() -> None:
    missing = "x.yaml  data.path: missing (where the pictures are). Add it, or pass data.path=VALUE"
    assert mistakes("") == [missing]
    assert mistakes("data: {size: 32}") == [missing]


def test_overrides_are_read_like_the_file_and_blamed_on_the_command_line() -> None:
    recipe = parse(
        Recipe,
        GOOD + "also: null\noptim: {lr: -1}\nmore: [{name: mae}]",
        [
            "optim.lr=1e-4",
            "also.name=dino",
            "also.teacher=[0, 1]",
            "data.kinds=[png, jpg]",
            "more.0.mask_ratio=0.5",
            "compile=true",
            "table.a=1",
            "note='1e-4'",
        ],
    )
    assert recipe.optim.lr == 1e-4 and recipe.also == Dino(teacher=(0, 1)) and recipe.data.kinds == ["png", "jpg"]
    assert recipe.more == [Mae(mask_ratio=0.5)] and recipe.compile is True and recipe.table == {"a": 1}
    assert recipe.note == "1e-4"
    text = GOOD + "seed: -1\nmore: [{name: mae}]"
    assert mistakes(text, "abc", "=3", "a..b=1", "seed.x=1", "more.1.name=mae", "optim.l=1") == [
        "x.yaml:2      seed: expected an integer of at least 0, found -1",
        "command line  expected FIELD=VALUE such as train.epochs=10, found 'abc'. A value with blanks stands in "
        "quotes: 'data.path=/my pictures'",
        "command line  expected FIELD=VALUE such as train.epochs=10, found '=3'",
        "command line  expected FIELD=VALUE such as train.epochs=10, found 'a..b=1'",
        "command line  seed.x: seed is -1, which has no fields",
        "command line  more.1.name: more has 1 elements, counted from 0, and no '1'",
        "command line  optim.l: unknown field. Did you mean 'lr'?",
    ]
    assert mistakes(GOOD + "optim: {lr: 0.1}", "optim={lr: -1}")[0].startswith("command line  optim.lr: ")
    assert mistakes("data: {path: a}\noptim: {lr: .inf}", "optim.steps=0", "seed=.nan") == [
        "x.yaml:2      optim.lr: expected a finite number, found .inf",
        "command line  seed: expected a finite number, found .nan",
        "command line  optim.steps: expected an integer of at least 1, found 0",
    ]


def test_a_text_that_is_read_again_knows_nothing_of_the_overrides_before() -> None:
    text = GOOD + "more: [{name: mae}]"
    again = parse(Recipe, text)
    changed = parse(Recipe, text, ["more.0.mask_ratio=0.5", "data.kinds=[png]", "table.a=1", "seed=4"])
    assert changed != again == parse(Recipe, text)
    assert mistakes(text, "seed=-1", "abc", "data.kinds.0=gif") and parse(Recipe, text) == again
    broken, fault = text + "\nseed: -1", "x.yaml:3  seed: expected an integer of at least 0, found -1"
    assert len(mistakes(broken, "abc")) == 2 and mistakes(broken) == [fault]


def test_text_that_yaml_reads_as_something_else_is_to_be_quoted() -> None:
    for typed, found in (("2024", "2024"), ("1e-4", "0.0001"), ("true", "true"), ("null", "null")):
        message = f"command line  note: expected text, found {found}. Quotes make it text: note='\"{typed}\"'"
        assert mistakes(GOOD, f"note={typed}") == [message]
        assert parse(Recipe, GOOD, [f'note="{typed}"']).note == typed
    empty = mistakes(GOOD, "note=")
    assert empty == [
        "command line  note: expected text, found null, which an empty value is. Quotes make it text: note='\"\"'"
    ]
    assert parse(Recipe, GOOD, ['note=""']).note == ""


class Wide(Strict, frozen=True):
    name: Literal["wide"] = "wide"
    shared: int = 1
    own: int = 2
    inner: Method = Mae()


class Narrow(Strict, frozen=True):
    name: Literal["narrow"] = "narrow"
    shared: int = 3
    inner: Method = Mae()


class Nested(Strict, frozen=True):
    outer: Annotated[Wide | Narrow, Field(discriminator="name")]
    many: list[Method] = []


def test_another_name_drops_the_old_ones_fields() -> None:
    """Those of the file alone; what both have stays, and what neither has is still a mistake."""
    text = "outer: {name: wide, shared: 7, own: 8, inner: {name: mae, mask_ratio: 0.5}}\nmany: [{name: dino, mae: 4}]"
    narrow = parse(Nested, text, ["outer.name=narrow"])
    assert narrow.outer == Narrow(shared=7, inner=Mae(mask_ratio=0.5))
    both = parse(Nested, text, ["outer.inner.name=dino", "outer.name=narrow", "many.0.name=mae"])
    assert both.outer == Narrow(shared=7, inner=Dino()) and both.many == [Mae()]
    assert parse(Nested, text, ["outer.name=wide"]).outer == parse(Nested, text).outer

    def wrong(text: str, *overrides: str) -> str:
        with pytest.raises(RecipeError) as caught:
            parse(Nested, text, overrides)
        return str(caught.value)

    assert "outer.own: unknown field" in wrong(text, "outer.own=3", "outer.name=narrow")
    assert "outer.other: unknown field" in wrong(text.replace("own", "other"), "outer.name=narrow")
    assert "outer.own: unknown field" in wrong(text.replace("wide", "narrow"))
    assert "outer.name: expected one of: wide, narrow, found 'narow'" in wrong(text, "outer.name=narow")


@pytest.mark.parametrize(
    "value",
    [
        "../a/*.tar",
        "*.tar",
        "&x",
        "!!python/object:os.system [a]",
        "a: b",
        "a #b",
        "[ab]/*.jpg",
        "{a,b}/c",
        "%d",
        "@x",
        "-",
    ],
)
def test_odd_text_arrives_from_the_command_line_as_it_was_typed(value: str) -> None:
    assert parse(Recipe, GOOD, [f"note={value}"]).note == value


def test_scalars_are_read_as_yaml_1_2_says() -> None:
    recipe = parse(Recipe, GOOD + "seed: 010\nnote: no\nencoder: 2024-01-01\noptim: {lr: 1e-4, warmup: 2}")
    assert (recipe.seed, recipe.note, recipe.encoder) == (10, "no", "2024-01-01")
    assert recipe.optim.lr == 1e-4 and repr(recipe.optim.warmup) == "2.0"
    assert parse(Recipe, GOOD + "seed: 0x1F\nnote: '010'\n").seed == 31
    assert "found '1_000'" in mistakes(GOOD + "seed: 1_000")[0]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "note: !!python/object/apply:os.system [touch hacked]",
            2,
            "no tags. Remove !!python/object/apply:os",
        ),
        ("seed: !!int 3", 2, "no tags. Remove !!int"),
        ("note: &a x", 2, "note: recipes are plain: no anchors. Remove &a"),
        ("table:\n  a: *b", 3, "table.a: recipes are plain: no alias *b"),
        ("seed: 1\nnote: x\nseed: 2", 4, "seed: written twice, first on line 2"),
        ("table: {a: 1, a: 1}", 2, "table.a: written twice"),
        ("3: x", 2, "expected names as keys, found 3"),
        ("? [a]\n: x", 2, "expected names as keys, found ['a']"),
        ("seed: -.inf", 2, "seed: expected a finite number, found -.inf"),
        ("optim: {warmup: 1e999}", 2, "optim.warmup: expected a finite number, found 1e999"),
        ("optim: {warmup: " + "9" * 400 + "}", 2, "optim.warmup: expected a finite number, found 999"),
        ("seed: " + "9" * 5000, 2, "seed: expected a finite number, found 999"),
        ("table: [1,\n  2", 3, "not YAML: expected ',' or ']'"),
        ("a: b: c", 2, "not YAML: mapping values are not allowed"),
        ("note: \x07", 2, "not YAML: a character '\\x07'"),
        ('note: "\\ud800"', 2, "note: expected Unicode text"),
        ('note: "\\UFFFFFFFF"', 2, "not YAML"),
        ("---\nseed: 1", 2, "one document"),
        ("note: " + "[" * 50_000, 2, "nested more than 32 levels deep"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    found = mistakes(GOOD + text)
    assert len(found) == 1 and found[0].startswith(f"x.yaml:{line}  ") and message in found[0], found


@pytest.mark.parametrize("text", ["- 1", "3", "null", "text", "%YAML 1.1\n---\nseed: 1", "!!map {seed: 1}"])
def test_a_recipe_is_one_mapping(text: str) -> None:
    assert mistakes(text)[0].startswith("x.yaml:1  ")


def test_an_alias_bomb_is_never_expanded() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    found = mistakes(bomb)
    assert sum("no anchors" in line for line in found) == 9 and sum("no alias" in line for line in found) == 16


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1\nnote: \xe9\n")
    (tmp_path / "large.yaml").write_text("#" * (MAX_BYTES + 1), encoding="utf-8")
    for name, message in {
        "latn.yaml": "latn.yaml: no such recipe. Did you mean 'latin.yaml'?",
        "": "expected a recipe file, found a folder",
        "latin.yaml": "latin.yaml:2  expected UTF-8 text, found byte 0xe9",
        "large.yaml": "large.yaml: larger than 1,000,000 bytes",
    }.items():
        with pytest.raises(RecipeError, match=re.escape(message)):
            load(Recipe, tmp_path / name)


class Everything(Strict, frozen=True):
    numbers: list[float] = []
    nested: list[list[float]] = []
    pair: tuple[float, int] = (0, 0)
    text: str = ""
    texts: list[str] = []
    table: dict[str, str | None] = {}
    maybe: float | None = None
    path: Path = Path(".")
    methods: list[Method] = []

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.methods)


TEXTS = [
    "no",
    "1e-4",
    "010",
    "null",
    "~",
    "",
    "true",
    ".5",
    ".nan",
    "0x1f",
    "1_0",
    "2024-01-01",
    "1:20",
    "- a",
    "a: b",
]
TEXTS += [
    "a #b",
    "#",
    "*x",
    "&x",
    "!x",
    "|",
    "%a",
    "@a",
    "'",
    '"',
    "\\",
    "a\nb",
    "\t",
    " a ",
    "\u2028",
    "\x85",
    "\x00",
]
TEXTS += [
    "\ufeff",
    "?é",
    "😀",
    "[",
    "{}",
    ",",
    ":",
    "<<",
    "---",
    "...",
    "--- a",
    "a " * 300,
    "../a/*.tar",
    "\n\n a\n",
]


def test_dump_is_read_back_exactly() -> None:
    draw = random.Random(0)
    bits = [struct.unpack("d", struct.pack("Q", draw.getrandbits(64)))[0] for _ in range(300)]
    numbers = [
        1e-8,
        0.1,
        1e22,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        *(x for x in bits if abs(x) < float("inf")),
    ]
    recipe = Everything(
        numbers=numbers,
        nested=[[1e-8], []],
        pair=(1e16, 10**17),
        text="1e-4",
        texts=TEXTS,
        table={**dict(zip(TEXTS, TEXTS, strict=True)), "none": None},
        path=Path("../a/*.tar"),
        methods=[Dino(mae=2), Mae()],
    )
    again = parse(Everything, dump(recipe))
    assert again == recipe and repr(again) == repr(recipe)
    assert parse(Everything, dump(Everything())) == Everything()


def test_dump_reads_like_a_recipe() -> None:
    text = dump(parse(Recipe, GOOD + "also: {name: mae}\noptim: {lr: 1e-8}"))
    assert text.startswith('seed: 0\nnote: ""\ncompile: false\ndata:\n  path: pictures\n  size: 224\n  kinds: [jpg]\n')
    assert "optim:\n  lr: 1e-08\n  warmup: null\n" in text


def test_describe_shows_every_field_with_type_default_and_meaning() -> None:
    text = describe(Recipe)
    lines = [line.strip() for line in text.split("\n")]
    for line in [
        "seed  integer >= 0 = 0",
        "note  text = ''",
        "compile  true or false = false",
        "data  (required)",
        "data.path  path  (required)",
        "where the pictures are.",
        "data.size  integer or list of 2 integers = 224",
        "data.kinds  list of 1 or more values (one of: jpg, png) = ['jpg']",
        "optim.lr  number > 0 = 0.0001",
        "optim.warmup  number >= 0 or null = null",
        "method  mapping with name: mae, dino",
        "name: mae  (default)",
        "method.mask_ratio  number > 0 and < 1 = 0.75",
        "name: dino",
        "method.teacher  list of 2 numbers = [0.04, 0.07]",
        "also  mapping with name: mae, dino or null = null",
        "also.mae  integer >= 1 = 3",
        "more.N.mae  integer >= 1 = 3",
    ]:
        assert line in lines, line
    assert not any(line.startswith("method.name") for line in lines)
    assert max(map(len, text.split("\n"))) <= 100


def test_differences_are_the_leaves_that_changed() -> None:
    old = parse(Recipe, GOOD + "more: [{name: mae}, {name: mae}]")
    new = parse(Recipe, GOOD + "optim: {lr: 0.2}\nmore: [{name: mae, mask_ratio: 0.5}]\nalso: {name: mae}")
    found = differences(old, new)
    assert [change.path for change in found] == ["optim.lr", "also", "more.0.mask_ratio", "more.1"]
    assert found[0] == Difference("optim.lr", 1e-4, 0.2) and differences(old, old) == []
    switched = differences(old, parse(Recipe, GOOD + "method: {name: dino}\nmore: [{name: mae}, {name: mae}]"))
    assert format_differences(switched).split("\n") == [
        "method.name         'mae' -> 'dino'",
        "method.mask_ratio   0.75 -> (absent)",
        "method.mae          (absent) -> 3",
        "method.teacher      (absent) -> [0.04, 0.07]",
    ]


def test_reading_recipes_needs_no_torch() -> None:
    code = "import sys, unlabeled.recipe; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    source = Path(__file__).parents[1] / "ssl"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})
