"""Evaluation on frozen features. Called, it runs one: `unlabeled.evaluate(encoder, data=...)`, see
`unlabeled.interface.scores.evaluate`."""

from unlabeled.called import call

call(__name__, "unlabeled.interface.scores:evaluate")
