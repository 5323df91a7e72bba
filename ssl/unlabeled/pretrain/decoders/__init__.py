"""One decoder in each file; see `pretrain/decoder.py`."""
