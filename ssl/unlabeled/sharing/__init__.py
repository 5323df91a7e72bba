"""Work on numbered shards, by an engine that a command line names."""
