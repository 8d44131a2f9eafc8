"""The error of the harness that is meant for the user."""

from __future__ import annotations

from vit_ptq_bench.errors import UserError


class BenchError(UserError):
    """What is wrong with a command, a suite, a setting or a file of results, and what to do about it."""
