"""Masks: each file is a kind, see `unlabeled.data.mask`."""
