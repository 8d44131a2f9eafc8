"""Hooks on modules that are removed again, whatever happens."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def watch(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    """Call ``hook`` before each forward of ``module``, until ``stack`` is closed.

    Args:
        stack: removes the hook when it closes.
        module: what is watched.
        hook: a forward pre-hook of torch, called with the module and its inputs.
    """
    stack.callback(module.register_forward_pre_hook(hook).remove)
