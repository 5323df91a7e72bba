"""One pretraining method in each file; see `pretrain/method.py`."""
