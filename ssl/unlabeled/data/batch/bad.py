"""Images that could not be used: counted once each, written down, too many of them stop the run."""

from __future__ import annotations

import json
from pathlib import Path

from unlabeled.errors import UserError
from unlabeled.files import end_line, json_lines


class BadSamples:
    """The bad images of one run, over all its processes and resumes; of `n` images a share of `limit` may be bad.

    They are written to a file, one {"key", "reason"} per line.
    """

    def __init__(self, file: Path, n: int, limit: float) -> None:
        self.file, self.n, self.limit = file, n, limit
        self.keys = {key for line in json_lines(file) if isinstance(key := line.get("key"), str)}

    def add(self, key: str, reason: str, write: bool = True) -> bool:
        """Note one; False if it was known already. `write` on one process only."""
        if key in self.keys:
            return False
        self.keys.add(key)
        if write:
            with self.file.open("ab+") as out:
                end_line(out)
                out.write(json.dumps({"key": key, "reason": reason}).encode() + b"\n")
        return True

    def check(self) -> None:
        """Raise UserError when more than the allowed share is bad."""
        if len(self.keys) > self.limit * self.n:
            raise UserError(
                f"{len(self.keys)} of {self.n} pictures cannot be used, more than data.max_bad_fraction {self.limit:g} "
                f"allows. They are listed in {self.file}: mend or remove them, or raise data.max_bad_fraction."
            )
