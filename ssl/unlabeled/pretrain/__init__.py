"""Pretraining: methods and what they share. Called, it runs one: `unlabeled.pretrain(recipe, data=...)`, see
`unlabeled.interface.runs.pretrain`."""

from unlabeled.called import call

call(__name__, "unlabeled.interface.runs:pretrain")
