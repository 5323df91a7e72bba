"""The package from Python: `unlabeled.load` and what it gives; see docs/python.md."""
