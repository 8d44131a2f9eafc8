"""The error of tasks that is meant for the user."""

from vit_ptq_bench.errors import UserError


class TaskError(UserError):
    """What is wrong with the data, the model or the options, and what to do about it."""
