"""Build the documentation into site/: `make docs`. It needs no network.

The pages of docs/, and those that are made from recipes, commands and methods, are put together in build/docs. Zensical
makes the site from them; a warning is an error. Every link, picture and anchor of the result is looked up.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from make import commands, errors, methods, recipes, results, written
from make.links import broken_site, missing_files
from make.navigation import settings

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "docs"


def assembled() -> Path:
    """The folder of settings and pages that the site is built from, made anew."""
    shutil.rmtree(WORK, ignore_errors=True)
    texts = written.pages(ROOT) | recipes.pages(ROOT) | results.pages(ROOT) | errors.pages(ROOT) | commands.pages()
    for name, text in texts.items():
        file = WORK / "pages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(methods.filled(text, ROOT), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "pictures", WORK / "pages" / "pictures")
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        shutil.copy(picture, WORK / "pages" / "results")
    (WORK / "ssl").symlink_to(ROOT / "ssl")
    (WORK / "zensical.toml").write_text(settings(ROOT / "docs" / "zensical.toml", texts), encoding="utf-8")
    return WORK


def main() -> int:
    """Build and check; the exit code."""
    folder = assembled()
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder)
    if built.returncode:
        return built.returncode
    texts = [(name, file.read_text(encoding="utf-8")) for name, file in _files(folder / "pages")]
    faults = [f"{name}: no file {missing}" for name, text in texts for missing in missing_files(text, ROOT)]
    faults += broken_site(folder / "site")
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    if not faults:
        shutil.rmtree(ROOT / "site", ignore_errors=True)
        shutil.move(folder / "site", ROOT / "site")
        print("The site is in site/. To read it with its search: python -m http.server --directory site")
    return bool(faults)


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(file.relative_to(folder).as_posix(), file) for file in sorted(folder.rglob("*.md"))]


if __name__ == "__main__":
    sys.exit(main())
