"""Tasks: each file is a kind, see `unlabeled.transfer.task`."""
