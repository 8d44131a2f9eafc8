"""The error of this package that is meant for the user, and how to tell one that is not."""

import torch


class MethodError(ValueError):
    """A method, model or setting cannot be used as asked; the text says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory of the host or of a device does not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # the CPU allocator of torch raises a plain RuntimeError
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
