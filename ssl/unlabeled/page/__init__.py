"""The page of a run and of several runs side by side, from the files in their folders alone."""
