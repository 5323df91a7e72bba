"""Strategies: each file is a kind, see `unlabeled.transfer.strategy`."""
