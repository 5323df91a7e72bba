"""The measurements of benchmarks/ as pages."""

from __future__ import annotations

from pathlib import Path


def pages(root: Path) -> dict[str, str]:
    """`results/index.md`, the log and a page for each file of `benchmarks/results`."""
    folder = root / "benchmarks"
    files = [folder / "LOG.md", *sorted((folder / "results").glob("*.md"), reverse=True)]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    rows = [f"- [{text.splitlines()[0].lstrip('# ')}]({name})" for name, text in texts.items()]
    index = "\n".join(["# Measured", "", "Newest first; negative results stay.", "", *rows, ""])
    return {"results/index.md": index} | {f"results/{name}": text for name, text in texts.items()}
