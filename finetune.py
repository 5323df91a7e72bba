"""Fine-tune a pretrained encoder on labelled images."""

import sys

from unlabeled.launch.program import main

if __name__ == "__main__":
    sys.exit(main("finetune", sys.argv[1:], last=True))
