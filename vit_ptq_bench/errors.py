"""The error that is meant for the user."""

from __future__ import annotations


class UserError(ValueError):
    """What is wrong and what to do about it; the command line prints the text without a traceback.

    Base of `BenchError`, `MethodError` and `TaskError`.
    """
