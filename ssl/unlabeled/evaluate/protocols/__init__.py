"""Protocols: each file is a kind, see `unlabeled.evaluate.protocol`."""
