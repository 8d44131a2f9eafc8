"""The fixtures of sweeps."""

from tests.bench.conftest import clean_registries, folder

__all__ = ["clean_registries", "folder"]
