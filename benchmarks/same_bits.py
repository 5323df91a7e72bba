"""Compare two checkouts: the same recipes, seeds and pictures must give the same bits.

python benchmarks/same_bits.py OLD NEW --keep /tmp/same_bits

Runs every case of `same_bits_cases.py` with each checkout's own programs and sources, on a CPU, and compares the last
checkpoint's tensors, the exported files byte by byte, logged and reported numbers. Both are given OLD's recipes, and
resumed runs go on from OLD's checkpoints. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from same_bits_cases import CASES, TINY, Case

Facts = dict[str, str]  # digest or value by place: `model/encoder.vit.cls_token`, `result.json/accuracy`

# Not compared. Times and speeds, and the cheapest of several ways by its time:
TIMES = (
    "*seconds",
    "*cost.*wall_s",
    "*cost.*cpu_s",
    "*images_per_s",
    "*pictures_per_second",
    "*data_wait",
    "ladder.json/pays.*",
)
# A recipe's own words, of which fields may have new names (`recipe.yaml` and `state.json` repeat them too), and the
# digest of the model card, which ends with them:
WORDS = (
    "export/MANIFEST.json/README.md.*",
    "result.json/protocol.task.*",
    "scores.json/protocol.evaluation.*",
    "export/README.md/recipe.task.*",
    "export/README.md/recipe.evaluate.*",
    "scores.json/rows.*.settings.task.*",
    "ladder.json/options.*",
)
# and in a model card, how a classifier was trained, which is a name in the recipe:
STRATEGY = re.compile(r"Fine-tuned \(\w+\) from")
# Files that are compared. The others are diagrams and pages with times in them, pictures drawn from what is compared,
# and the index of prepared pictures, which knows when they were written:
FILES = (
    *("export/*", "result.json", "metrics.jsonl", "scores.json", "ladder.json"),
    *("features-*.safetensors", "manifest.json", "prepared.json", "*.tar"),
)
FIRST_CHECKPOINT = "step-00000004"
LIMIT = 300  # seconds of a case


def main() -> int:
    """Run, compare, print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout, whose results are taken as right")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--keep", type=Path, help="folder for results; those of OLD are used again")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CASE", help="patterns of cases; default: all")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    options = parser.parse_args()
    chosen = [case for name, case in CASES.items() if any(fnmatch.fnmatch(name, one) for one in options.only)]
    if options.list:
        print("\n".join(f"{case.name:22} python {' '.join(case.arguments)}" for case in chosen))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        keep = (options.keep or Path(temporary)).resolve()
        old = _old_facts(options.old.resolve(), keep / "old")
        new = _new_facts(options.new.resolve(), options.old.resolve(), keep, chosen)
    different = [case.name for case in chosen if _show(case.name, old[case.name], new[case.name])]
    print(f"{len(chosen)} cases, {len(different)} differ" + (f": {' '.join(different)}" if different else ""))
    return 1 if different else 0


def _show(name: str, old: Facts, new: Facts) -> bool:
    """Print one line of the table, and the first differences; whether there are any."""
    places = [place for place in sorted(old.keys() | new.keys()) if old.get(place) != new.get(place)]
    print(f"{name:22} {len(old):5} facts  {f'{len(places)} DIFFER' if places else 'same'}", flush=True)
    for place in places[:12]:
        print(f"    {place}: {old.get(place, 'missing')[:150]} -> {new.get(place, 'missing')[:150]}")
    return bool(places)


# ---------------------------------------------------------------- running


def _old_facts(checkout: Path, home: Path) -> dict[str, Facts]:
    """All cases by the older checkout; one is run again only where it is another than before."""
    file, command = home / "done.json", ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    revision = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if done.get("revision") != revision:
        shutil.rmtree(home, ignore_errors=True)
        done = {"revision": revision, "arguments": {}}
        _furnish(home, checkout)
    missing = [case for name, case in CASES.items() if done["arguments"].get(name) != list(case.arguments)]
    for case in missing:
        shutil.rmtree(home / case.result, ignore_errors=True)
    found = _run(checkout, home, home, missing) if missing else {}
    done["arguments"] |= {name: list(CASES[name].arguments) for name, facts in found.items() if facts["exit"] == "0"}
    file.write_text(json.dumps(done), encoding="utf-8")
    if broken := CASES.keys() - done["arguments"].keys():
        raise SystemExit(f"{checkout} cannot run {', '.join(sorted(broken))}: see {home}/logs")
    return {name: {"exit": "0", **dict(_facts(home / case.result))} for name, case in CASES.items()}


def _new_facts(checkout: Path, old: Path, keep: Path, cases: list[Case]) -> dict[str, Facts]:
    """The chosen cases by the newer checkout; results of others, which these may need, are OLD's."""
    home = keep / "new"
    shutil.rmtree(home, ignore_errors=True)
    _furnish(home, old)
    written = {case.result for case in cases}
    for case in CASES.values():
        if case.result not in written and (keep / "old" / case.result).exists():
            shutil.copytree(keep / "old" / case.result, home / case.result)
    return _run(checkout, home, keep / "old", cases)


def _run(checkout: Path, home: Path, old: Path, cases: list[Case]) -> dict[str, Facts]:
    """Run cases one after another in forks of one process, which has imported everything that takes long."""
    for case in cases:
        if case.resumes and home != old:
            _rewind(old, case, home)
    variables = {"PYTHONPATH": str(checkout / "ssl"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, __file__, "--inside", str(checkout), *(case.name for case in cases)]
    process = subprocess.Popen(command, cwd=home, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    codes: dict[str, str] = {}
    for line in process.stdout:
        name, code, seconds = line.split()
        codes[name] = code
        print(f"{checkout.name}: {name} in {seconds} s{'' if code == '0' else f', exit code {code}'}", file=sys.stderr)
    process.wait()
    return {case.name: {"exit": codes.get(case.name, "none"), **dict(_facts(home / case.result))} for case in cases}


def _inside(checkout: Path, names: list[str]) -> None:
    """Fork a process for each case; says its name, exit code and seconds."""
    import importlib
    import pkgutil

    import accelerate  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    import unlabeled

    assert Path(unlabeled.__file__).is_relative_to(checkout), f"imported {unlabeled.__file__}, not that of {checkout}"
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(unlabeled.__path__, "unlabeled.", onerror=lambda _: None):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except Exception as error:  # the case that needs it fails, and says so
                print(f"{module.name}: {error}", file=sys.stderr)
    Path("logs").mkdir(exist_ok=True)
    for name in names:
        started, case = time.perf_counter(), CASES[name]
        if case.resumes and not Path(case.result).exists():
            _rewind(Path.cwd(), case, Path.cwd())
        sys.stdout.flush()
        if not (child := os.fork()):
            _one(checkout, case)
        print(name, _waited(child), f"{time.perf_counter() - started:.1f}", flush=True)


def _one(checkout: Path, case: Case) -> None:
    """A case in this process, which ends."""
    log = os.open(f"logs/{case.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code: Any = 1
    try:
        program, *arguments = case.arguments
        if program == "-m":
            package, *arguments = arguments
            sys.argv = [package, *arguments]
            runpy.run_module(package, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [program, *arguments]
            runpy.run_path(str(checkout / program), run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _waited(child: int) -> int:
    """The exit code of a process, which is killed where it takes too long."""
    for _ in range(LIMIT * 20):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


def _rewind(old: Path, case: Case, home: Path) -> None:
    """A run of OLD's as it was after its first checkpoint."""
    source = CASES[case.resumes or ""].result
    shutil.copytree(old / source, home / case.result)
    for folder in (home / case.result / "checkpoints").iterdir():
        if folder.name != FIRST_CHECKPOINT:
            shutil.rmtree(folder)
    shutil.rmtree(home / case.result / "export")


def _furnish(home: Path, checkout: Path) -> None:
    """Recipes, and pictures of two classes in every form that sources read: always the same."""
    shutil.copytree(checkout / "recipes", home / "recipes")
    (home / "tiny.yaml").write_text(TINY, encoding="utf-8")
    random, rows, stacked = np.random.Generator(np.random.PCG64(0)), ["path"], []
    for split, count in (("train", 12), ("val", 6)):
        for label, low in (("dark", 0), ("light", 100)):
            for number in range(count):
                pixels = random.integers(low, low + 150, (24, 20 + number, 3), dtype=np.uint8)
                mask = np.repeat(np.repeat(random.integers(0, 2, (6, 5 + number // 4), dtype=np.uint8), 4, 0), 4, 1)
                _save(home / "pictures" / split / label / f"{number}.png", pixels)
                _save(home / "scenes" / split / f"{label}{number}.png", pixels[:, : mask.shape[1]])
                _save(home / "scenes" / f"{split}_masks" / f"{label}{number}.png", mask)
                if split == "train":
                    rows.append(f"pictures/{split}/{label}/{number}.png")
                    stacked.append(pixels[:20, :20])
    (home / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    np.save(home / "x.npy", np.stack(stacked))
    with tarfile.open(home / "pictures.tar", "w") as packed:
        packed.add(home / "pictures" / "train", "train")


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    os.utime(file, (0, 0))  # a fingerprint may know it


# ---------------------------------------------------------------- comparing


def _facts(folder: Path) -> Iterator[tuple[str, str]]:
    """What is compared of a case's folder."""
    newest = max(folder.glob("checkpoints/step-*"), default=None)
    for part in ("model", "optimizer") if newest else ():
        yield from _tensors(newest / f"{part}.safetensors", part)  # type: ignore[operator]
    for file in sorted(file for pattern in FILES for file in folder.glob(pattern)):
        yield from _of_file(file, str(file.relative_to(folder)))


def _of_file(file: Path, place: str) -> Iterator[tuple[str, str]]:
    """Of numbers each by itself, of other files a digest."""
    if place == "export/README.md":
        text, _, rest = file.read_text(encoding="utf-8").partition("```yaml\n")
        yield f"{place}/text", STRATEGY.sub("Fine-tuned from", text) + rest.partition("```")[2]
        yield from _values(_yaml(rest.partition("```")[0]), f"{place}/recipe.")
    elif file.suffix == ".json" and place != "export/config.json":
        yield from _values(json.loads(file.read_text(encoding="utf-8")), f"{place}/")
    elif file.suffix == ".jsonl":
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
            yield from _values(json.loads(line), f"{place}/{number}.")
    else:
        yield place, hashlib.sha256(file.read_bytes()).hexdigest()


def _values(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """The leaves of nested values, with dotted places, but for those that are not compared."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is not None:
        for key, part in parts:
            yield from _values(part, f"{place}{key}.")
    elif not any(fnmatch.fnmatch(place[:-1], left_out) for left_out in (*TIMES, *WORDS)):
        yield place[:-1], repr(value)


def _tensors(file: Path, place: str) -> Iterator[tuple[str, str]]:
    """A digest of every tensor: its kind, shape and bytes, as safetensors lays them out."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            told = f"{about['dtype']} {about['shape']} ".encode()
            yield f"{place}/{name}", hashlib.sha256(told + data[8 + length :][first:last]).hexdigest()


def _yaml(text: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text)


if __name__ == "__main__":
    if "--inside" in sys.argv[1:2]:
        _inside(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
