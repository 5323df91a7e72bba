"""Targets: each file is a kind, see `unlabeled.transfer.target`."""
