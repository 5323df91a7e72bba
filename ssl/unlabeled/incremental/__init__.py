"""Classes that come in tasks: strategies, memory, measures and the network that grows."""
