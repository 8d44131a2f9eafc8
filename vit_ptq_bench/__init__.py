"""Benchmark of post-training quantization methods for vision transformers.

The folders `bench`, `methods` and `tasks` of the repository are subpackages of this one, so that installing
the project takes no import name but this.
"""
