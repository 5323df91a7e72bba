"""Thresholds: each file is a kind, see `unlabeled.transfer.threshold`."""
