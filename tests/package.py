"""The package as it is installed: built, put into an environment of its own, started in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ("ssl", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SHARED = ("torch", "torchvision")  # gigabytes: those of this environment
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Environment(NamedTuple):
    """A virtual environment and the empty folder that its programs are started in."""

    python: Path
    folder: Path

    def run(self, words: Sequence[str], code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, which has to end with `code`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        env |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder.parent / "cache"), **variables}
        done = subprocess.run(
            [str(self.python.parent / words[0]), *words[1:]], cwd=self.folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def unlabeled(self, *words: str, code: int = 0, **variables: str) -> str:
        """What a command prints, errors last."""
        done = self.run(["unlabeled", *words], code, **variables)
        return done.stdout + done.stderr


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source archive of this checkout; the wheel is built from the archive."""
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(checkout)]
    subprocess.run(words, check=True, capture_output=True)
    [wheel], [archive] = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, archive


def environment(folder: Path, wheel: Path) -> Environment:
    """An environment with the wheel; all other packages are those of this environment."""
    # the folder of packages alone: its .pth files, such as that of an editable install, are not read
    made = _created(folder, Path(sysconfig.get_path("purelib")))
    _uv("pip", "install", "--python", made.python, "--no-deps", wheel)
    return made


def lowest(folder: Path, extras: Sequence[str]) -> Environment:
    """An environment with the lowest versions that pyproject.toml allows, and with no package that it does not ask for.

    The package is that of this checkout. So that an installer cannot write into this environment, torch and torchvision
    lie beside the packages of the new one.
    """
    made = _created(folder, _links(folder / "shared"), ROOT / "ssl")
    (folder / "excluded").write_text("\n".join(SHARED), encoding="utf-8")
    how = ("--python", made.python, "--excludes", folder / "excluded", "--resolution", "lowest-direct")
    asked = [word for name in extras for word in ("--extra", name)]
    _uv("pip", "install", *how, "--requirements", ROOT / "pyproject.toml", *asked)
    return made


def _created(folder: Path, *others: Path) -> Environment:
    """An environment that also finds the packages in other folders, after its own."""
    _uv("venv", "--python", sys.executable, folder / "venv")
    made = Environment(folder / "venv" / "bin" / "python", folder / "empty")
    made.folder.mkdir()
    place = made.run(["python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    (Path(place) / "others.pth").write_text("".join(f"{other}\n" for other in others), encoding="utf-8")
    return made


def _links(folder: Path) -> Path:
    """A folder of links to torch, torchvision and what they need; numpy and Pillow aside, which have bounds here."""
    folder.mkdir()
    asked, seen = list(SHARED), {"numpy", "pillow"}
    while asked:
        name = re.sub(r"[-_.]+", "-", asked.pop()).lower()
        if name in seen or not (found := list(metadata.distributions(name=name))):  # some are for other platforms
            continue
        seen.add(name)
        for top in {file.parts[0] for file in found[0].files or []} - {"..", "__pycache__"}:
            if not (folder / top).is_symlink():  # several packages fill the folder nvidia
                (folder / top).symlink_to(str(found[0].locate_file(top)))
        asked += [re.split(r"[^\w.-]", text)[0] for text in found[0].requires or [] if "extra ==" not in text]
    return folder


def _uv(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
