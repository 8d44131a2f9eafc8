"""From a suite and settings to a list of runs. Nothing here imports torch."""
