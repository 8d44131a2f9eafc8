"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def distribution_version() -> str:
    """Return the version; ``0+unknown`` for a checkout that is not installed."""
    try:
        return version("vit-ptq-bench")
    except PackageNotFoundError:
        return "0+unknown"
