"""The contract between tasks and the rest: base class, options, registry. Nothing here imports torch."""
