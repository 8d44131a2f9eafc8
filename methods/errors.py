"""The error of this package that is meant for the user."""


class MethodError(ValueError):
    """A method, model or setting cannot be used as asked; the text says what to do."""
