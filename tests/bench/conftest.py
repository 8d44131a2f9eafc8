"""Fixtures: clean registries, an empty current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit_ptq_bench.bench.planning import plugins


@pytest.fixture(autouse=True)
def clean_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a plugin registers in this process goes again after the test."""
    from vit_ptq_bench.methods.api.registry import METHODS
    from vit_ptq_bench.tasks.api.registry import TASKS

    registries = (METHODS.module_dict, TASKS.module_dict)
    before = [dict(registry) for registry in registries]
    monkeypatch.setattr(plugins, "_loaded_points", set())
    monkeypatch.setattr(plugins, "_loaded_files", {})
    monkeypatch.setattr(plugins, "_failures", {"method": {}, "task": {}})
    yield
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BENCH_")]:
        monkeypatch.delenv(name)
    return tmp_path
