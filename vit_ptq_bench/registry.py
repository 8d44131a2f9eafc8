"""A registry of classes by name, filled by the modules of a package, by plug-ins and by hand."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from mmengine.registry import Registry as MMRegistry

from vit_ptq_bench.errors import UserError
from vit_ptq_bench.guests import one_line, watched


class Registry(MMRegistry):  # type: ignore[misc]  # mmengine has no types
    """mmengine's registry; imports the modules of a package when it is first read.

    A module that cannot be imported is noted in `broken` and does not stop the others.

    Args:
        kind: what the classes are, for messages ("method", "task").
        package: dotted name of the package whose modules register classes.
        left_out: names of its modules that register nothing.
        error: raised for the user's mistakes.

    Attributes:
        broken: module -> error, in one line, of the modules that could not be imported.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        left_out: tuple[str, ...] = (),
        error: Callable[[str], UserError] = UserError,
    ) -> None:
        super().__init__(kind, scope="vit_ptq_bench")
        self.broken: dict[str, str] = {}
        self._package, self._left_out, self._error = package, left_out, error
        self._discovered = False

    @property
    def module_dict(self) -> dict[str, Any]:
        """Name -> class."""
        self.import_from_location()
        known: dict[str, Any] = self._module_dict
        return known

    def add(self, name: str, cls: type) -> None:
        """Register a class.

        Raises:
            UserError: the name is taken.
        """
        taken = self._module_dict.get(name)
        if taken is not None:
            place = f"{taken.__module__}.{taken.__qualname__}"
            raise self._error(f"{self.name} name {name!r} is taken by {place}")
        self.register_module(name=name, module=cls)

    def import_from_location(self) -> None:
        """Import every module of the package, once; mmengine's hook before a look-up."""
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if module.ispkg or module.name in self._left_out:
                continue
            try:
                with watched():
                    importlib.import_module(f"{self._package}.{module.name}")
            except Exception as error:  # a file that somebody is writing can fail in any way
                self.broken[module.name] = one_line(error)
