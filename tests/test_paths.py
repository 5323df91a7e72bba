"""`~` is a home folder in every path that a person can give: fields of recipes, options of commands, the API."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
from pydantic import AfterValidator, BaseModel
from support import TINY_PRETRAIN

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.command import command, programs, summaries
from unlabeled.data.sources.table import Config as Table
from unlabeled.paths import expand, user_path
from unlabeled.recipe import parse
from unlabeled.recipe.kinds import Kind, is_model, kind_of, members_of, unwrap
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe

# fields of text that are no paths of this machine's file system
NO_PATHS = {
    *("name", "model", "schedule", "rand_augment", "labels", "part", "separator", "image", "label", "split"),
    *("train", "val", "config", "revision", "dataset", "values", "ignore", "layer"),
    *("train_boxes", "val_boxes", "names"),  # below data.path
}
# positionals and options of text that are no paths
NO_PATH_OPTIONS = {
    *("overrides", "train", "val", "protocol", "set", "device", "prefix", "rungs", "split", "method", "format", "help"),
    *("classes", "group", "license", "message", "repo", "revision"),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_no_path_has_a_nul() -> None:
    with pytest.raises(ValueError, match="a path without NUL is expected"):
        Table(path="a\0b.csv")


def test_words_before_the_path_stay(home: Path) -> None:
    told = {"~/a": f"{home}/a", "scratch:~/a": f"scratch:{home}/a", "mae:~/a.pth": f"mae:{home}/a.pth", "~": str(home)}
    same = ("/a/~/b", "a~", "s3://bucket/~/a", "timm:vit_tiny", "./~", "a/b:~")
    assert {path: expand(path) for path in (*told, *same)} == {**told, **{path: path for path in same}}
    assert expand("~/{000..012}.tar") == f"{home}/{{000..012}}.tar"


def texts(model: type[BaseModel], place: str = "", seen: tuple[Any, ...] = ()) -> Iterator[tuple[str, str, bool]]:
    """(place, name, whether `~` is expanded) of every field of text, through all sections."""
    for name, field in model.model_fields.items():
        yield from _texts(kind_of(field), f"{place}{name}", name, (*seen, model))


def _texts(kind: Kind, place: str, name: str, seen: tuple[Any, ...]) -> Iterator[tuple[str, str, bool]]:
    for member in members_of(kind):
        if is_model(member):
            if member.type not in seen:
                yield from texts(member.type, f"{place}.", seen)
        elif get_origin(member.type) in (tuple, list):
            for inner in get_args(member.type):
                if inner is not Ellipsis:
                    yield from _texts(unwrap(inner), place, name, seen)
        elif member.type is str and not any(getattr(rule, "pattern", None) for rule in member.rules):
            yield place, name, any(isinstance(rule, AfterValidator) and rule.func is expand for rule in member.rules)


def test_every_field_that_is_a_path_expands_it() -> None:
    found = [*texts(PretrainRecipe), *texts(FinetuneRecipe)]
    of_arrays = ("data.train", "data.val", "data.train_labels")
    expanded = {place for place, _, does in found if does}
    assert not {place for place, name, does in found if not does and name not in NO_PATHS}
    paths = ("path", "val_path", "root", "cache", "classes", "train_labels", "val_labels")
    assert {*(f"data.{name}" for name in paths), *of_arrays, "run.output", "encoder", "init"} <= expanded
    assert {"evaluate.cka.against", "data.sources.path", "data.sources.cache"} <= expanded


def parsers(monkeypatch: pytest.MonkeyPatch) -> dict[str, argparse.ArgumentParser]:
    """Those of all commands and of both programs, caught as they are asked to parse."""
    caught: list[argparse.ArgumentParser] = []

    def catch(self: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", catch)
    from unlabeled.launch import program as cli

    with pytest.raises(KeyboardInterrupt):
        cli.main("pretrain", [])
    found = {name: argparse.ArgumentParser(name) for name in summaries() if name not in programs()}
    for name, parser in found.items():
        command(name).add_arguments(parser)
    return {**found, "pretrain.py": caught[0]}


def test_every_option_that_is_a_path_expands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded, others = set(), set()
    for name, parser in parsers(monkeypatch).items():
        for action in parser._actions:
            if action.type in (expand, user_path):
                expanded.add((name, action.dest))
            elif action.type in (None, str, Path) and action.nargs != 0 and not action.choices:
                others.add((name, action.dest))
    # the programs expand their recipe later: their options import nothing that is slow
    assert {(name, dest) for name, dest in others if dest not in NO_PATH_OPTIONS} == {("pretrain.py", "recipe")}
    named = {("evaluate", "exports"), ("evaluate", "data"), ("ladder", "out"), ("embed", "out"), ("report", "runs")}
    assert {*named, ("import", "file"), ("doctor", "recipe")} <= expanded


def test_an_encoder_and_an_output_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2).build((8, 8))
    export_encoder(home / "export", tiny, IMAGENET, "card", {})
    for path in ("~/export", Path("~/export")):
        assert torch.equal(load_encoder(path).vit.norm.weight, tiny.vit.norm.weight)
        assert preprocessing_of(path).size == (8, 8)
    text = "name: it\nencoder: scratch:~/export\ndata: {name: shapes}\nrun: {output: ~/runs}"
    (home / "it.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert main(["pretrain", "~/it.yaml", "--dry-run"]) == 0
    recipe = parse(FinetuneRecipe, text)
    assert (recipe.encoder, recipe.output) == (f"scratch:{home}/export", f"{home}/runs")
    arguments = ["embed", "~/export", "shapes", "~/out", "--split", "val", "--device", "cpu", "--workers", "0"]
    assert main([*arguments, "data.val_size=4"]) == 0 and (home / "out" / "manifest.json").exists()
