"""Orders of an epoch: each file is a kind, see `unlabeled.data.order`."""
