"""The error a task raises for something that its user can put right."""


class TaskError(ValueError):
    """What is wrong with the data, the model or the options, and what to do about it."""
