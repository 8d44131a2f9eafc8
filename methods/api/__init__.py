"""The contract between methods and the rest: base classes, settings, registry. Nothing here imports torch."""
