"""Category discovery: clusters of unlabelled images, of which some belong to known classes and others to new ones."""
