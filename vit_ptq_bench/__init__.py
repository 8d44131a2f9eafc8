"""Benchmark of post-training quantization methods for vision transformers.

The folders `bench`, `methods` and `tasks` of the repository are subpackages of this one, so that installing
the project takes no import name but this.
"""

from __future__ import annotations

from vit_ptq_bench.version import distribution_version

__version__ = distribution_version()
