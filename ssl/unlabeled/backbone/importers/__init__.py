"""Official repositories: one file each."""
