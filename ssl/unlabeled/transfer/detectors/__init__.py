"""Detectors: each file is a kind, see `unlabeled.transfer.detector`."""
