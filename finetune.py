"""Fine-tune a pretrained encoder on labelled pictures: recipe + export -> task -> the same engine."""

from __future__ import annotations

import sys

from unlabeled.launch.program import main
from unlabeled.stages.finetune import Finetune

if __name__ == "__main__":
    sys.exit(main(Finetune()))
