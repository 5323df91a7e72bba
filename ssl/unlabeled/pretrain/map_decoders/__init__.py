"""One decoder of feature maps in each file; see `pretrain/map_decoder.py`."""
