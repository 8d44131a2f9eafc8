"""The import names of release 0.1, for plug-ins that were written for it; they go with release 0.3.

``from methods import Method`` in a plug-in finds what ``vit_ptq_bench.methods`` has, with a
warning. A package of the user's own that is called ``methods``, ``tasks`` or ``bench`` comes first.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = "vit_ptq_bench"
PROJECT = Path(__file__).resolve().parents[2]
TOP = ("bench", "methods", "tasks")

_PARTS = "methods.quantization"
MOVED = {
    "methods.base": "methods.api.method",
    "methods.reconstruction": "methods.api.reconstruction",
    "methods.registry": "methods.api.registry",
    f"{_PARTS}.calibration": _PARTS,
    f"{_PARTS}.capture": f"{_PARTS}.calibration.recording",
    f"{_PARTS}.compensation": f"{_PARTS}.error_compensation.columnwise",
    f"{_PARTS}.families": f"{_PARTS}.model.families",
    f"{_PARTS}.folding": f"{_PARTS}.model.folding",
    f"{_PARTS}.layers": f"{_PARTS}.model.layers",
    f"{_PARTS}.model": f"{_PARTS}.model.structure",
    f"{_PARTS}.quantizers": f"{_PARTS}.quantizers.uniform",
    f"{_PARTS}.ranges": f"{_PARTS}.calibration.range_rules",
    f"{_PARTS}.reconstruction": _PARTS,
    f"{_PARTS}.ridge": f"{_PARTS}.error_compensation.ridge",
    f"{_PARTS}.rounding": f"{_PARTS}.quantizers.arithmetic",
    f"{_PARTS}.scores": f"{_PARTS}.search.scores",
    f"{_PARTS}.search": f"{_PARTS}.search.operation",
    "tasks.base": "tasks.api.task",
    "tasks.checkpoints": "tasks.storage.checkpoints",
    "tasks.metrics": "tasks.classification.evaluation",
    "tasks.registry": "tasks.api.registry",
}
"""Modules that stand elsewhere now."""

RENAMED = {
    "Learnable": "Trainable",
    "Progress": "CalibrationProgress",
    "Record": "Recording",
    "Term": "Loss",
}
"""Public names that are called otherwise now."""


def install() -> None:
    """Let the old names be found from now on, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds an old name where no package of the user's own has it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a stand-in, or None for names that are not ours."""
        top = name.partition(".")[0]
        if top not in TOP or _is_foreign(top):
            return None
        return ModuleSpec(name, _StandInLoader(), is_package=True)


def _is_foreign(top: str) -> bool:
    """Whether the user has a package of this name; the folders of a checkout of ours do not count."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        return not isinstance(loaded, _StandIn)
    found = PathFinder.find_spec(top)
    return found is not None and not (
        found.origin is not None and Path(found.origin).resolve().is_relative_to(PROJECT)
    )


class _StandIn(ModuleType):
    """A module under its old name; its attributes are those of the module that stands for it now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        present = importlib.import_module(_present_name(self.__name__))
        for known in (name, RENAMED.get(name)):
            if known is not None and hasattr(present, known):
                return getattr(present, known)
        raise AttributeError(f"{present.__name__} has no {name!r} any more")


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        present = _present_name(spec.name)
        try:
            importlib.import_module(present)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{spec.name} is gone: {error}", name=spec.name) from error
        if multiprocessing.parent_process() is None:  # said once, not in the log of every run
            warnings.warn(
                f"import {present} instead of {spec.name}: release 0.3 will not know the old name",
                FutureWarning,  # a DeprecationWarning of a plug-in is not shown
                stacklevel=2,
            )
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: a stand-in asks the present module."""


def _present_name(old: str) -> str:
    return f"{ROOT}.{MOVED.get(old, old)}"
