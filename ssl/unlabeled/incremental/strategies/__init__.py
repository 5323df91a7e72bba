"""Kinds of class-incremental strategies: one file each."""
