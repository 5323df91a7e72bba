"""Pictures that look alike: an index over the features that `unlabeled embed` writes, and what neighbours tell."""
