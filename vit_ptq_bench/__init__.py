"""Benchmark of post-training quantization methods for vision transformers.

The folders `bench`, `methods` and `tasks` of the repository are subpackages of this one, so that installing
the project takes no import name but this.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def __getattr__(name: str) -> str:
    """Return ``__version__`` when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return version("vit-ptq-bench")
    except PackageNotFoundError:
        return "0+unknown"  # a checkout that is not installed
