"""The data plane: source -> decode -> view -> batch."""
