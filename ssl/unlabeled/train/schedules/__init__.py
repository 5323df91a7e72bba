"""Kinds of learning-rate schedules, one a file."""
