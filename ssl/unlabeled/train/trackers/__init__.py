"""Kinds of trackers, one a file."""
