"""Fine-tuning a ViT-S/16: our engine's loop, and timm's own model in a bare loop. See `tuning`.

python benchmarks/finetune.py [--json] [--rounds N] [--threads N] [--device cuda --precision bf16 --batch-size N]
"""

from tuning import main

if __name__ == "__main__":
    main()
