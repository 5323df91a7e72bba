"""Engines, a file each: see `unlabeled.sharing.shards`."""
