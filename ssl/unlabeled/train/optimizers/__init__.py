"""Kinds of optimizers, one a file."""
