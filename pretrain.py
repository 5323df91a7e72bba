"""Pretrain an encoder on images without labels."""

import sys

from unlabeled.launch.program import main

if __name__ == "__main__":
    sys.exit(main("pretrain", sys.argv[1:], last=True))
