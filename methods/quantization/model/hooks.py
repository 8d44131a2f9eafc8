"""Hooks on modules that are removed again, whatever happens."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooks(handles: ExitStack | None = None) -> Iterator[ExitStack]:
    """Collect hook handles and remove them at the end, whatever happens."""
    with ExitStack() as stack:
        yield handles or stack


def _watch(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    stack.callback(module.register_forward_pre_hook(hook).remove)
