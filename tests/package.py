"""The package as it is installed: built, put into an environment of its own, started in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ("ssl", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")
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
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    made = Environment(folder / "venv" / "bin" / "python", folder / "empty")
    made.folder.mkdir()
    place = made.run(["python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    # the folder of packages alone: its .pth files, such as that of an editable install, are not read
    (Path(place) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    made.run(["python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)])
    return made
