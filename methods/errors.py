"""The error of methods that is meant for the user."""

from __future__ import annotations

from vit_ptq_bench.errors import UserError


class MethodError(UserError):
    """A method, model or setting cannot be used as asked; the text says what to do.

    Attributes:
        parameter: name of the method's parameter that is wrong; None where it is about something else.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter
