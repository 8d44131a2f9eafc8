"""Post-training quantization methods for vision transformers.

Every module of this package that is not a building block holds one method and is imported here, so
that a new method is one new file.
"""

import importlib
import pkgutil

from methods.base import Method
from methods.errors import MethodError
from methods.registry import METHODS, register_method

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"methods.{_module.name}")

__all__ = ["METHODS", "Method", "MethodError", "register_method"]
