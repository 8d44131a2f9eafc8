"""Scripts that train the bundled models."""
