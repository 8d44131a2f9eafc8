"""A suite: one sweep written down as data (TOML)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.factorial import Factors, problems, read_factors
from vit_ptq_bench.bench.planning.names import hint, unknown
from vit_ptq_bench.bench.planning.options import expanded, unusable
from vit_ptq_bench.bench.planning.toml_file import TomlFile
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol
from vit_ptq_bench.values import out_of_bounds, shown

SUITES_FOLDER = Path(__file__).parents[1] / "suites"

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

KEYS = (
    "name",
    "description",
    "task",
    "models",
    "methods",
    "bits",
    "protocols",
    "seeds",
    "single_draw",
    "calibration_images",
    "calibration",
    "sources",
    "limit",
    "parameters",
    "variants",
    "factorial",
    "task_options",
    "scopes",
    "include",
)

MAX_IMAGES = 10**9
"""Images of a calibration or evaluation set: more than any has."""

MAX_INCLUDED = 100
"""Suites that run along with one."""

MODEL_KEYS = ("checkpoint", "model_args")
"""Keys of a table ``[models.NAME]``."""

LABEL = r"[a-z0-9+][a-z0-9+._-]{0,99}"
"""Form of a variant's label."""


@dataclass(frozen=True)
class Suite:
    """What a sweep runs. Names of methods, models and the task are checked by `bench.plan`.

    The metadata of the fields that are numbers bound them, wherever they come from.

    Attributes:
        name: short name; the default output folder is called so.
        task: name of the one task.
        models: model names or globs of that task.
        checkpoints: weights of single models, by their names, in the place of their own.
        model_args: arguments with which single models are built, by their names.
        methods: method names or globs; ``*`` is every method but the full-precision reference.
        bits: bit widths in the form ``W4A4``.
        protocols: ``equal`` (one bit table for all) and/or ``authors`` (each method's own).
        seeds: each seed is one draw of calibration images and one state of every random generator.
        single_draw: methods that run with the first of the seeds only, for what they cost.
        calibration_images: number for all methods; None: see `bench.plan.calibration_images`.
        calibration: where calibration images come from: ``training``, ``folder`` and/or ``psaq-vit``; see
            `bench.planning.sources`.
        sources: settings of sources, by their name.
        limit: evaluate on this many images only; None: on all.
        parameters: settings of methods by method name; the rest keep their defaults. Besides the method's
            own there is ``transforms``, the names of transforms that go in front of it.
        variants: by method name, label -> settings on top of ``parameters``; such a method runs once
            per label. The label is for people, a run's identity comes from its settings.
        factorial: by method name, factors of two levels each, with their settings on top of ``parameters``;
            such a method runs once per combination of levels. It has no variants besides.
        task_options: options of the task that the suite fixes.
        source: the file, with its line numbers; None for a suite made in memory.
        scopes: what of a detector is quantized, ``backbone`` or ``full``; empty: the task's usual one.
        include: names of other bundled suites that run along.
        description: one line for `bench list suites`.
        overridden: fields that do not come from the file, with the option that set them.
    """

    name: str
    task: str
    models: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    bits: tuple[str, ...] = ("W6A6", "W4A4", "W3A3")
    protocols: tuple[Protocol, ...] = ("equal",)
    seeds: tuple[int, ...] = field(default=(0,), metadata={"at_least": 0, "at_most": 2**32 - 1})
    single_draw: tuple[str, ...] = ()
    calibration_images: int | None = field(
        default=None, metadata={"at_least": 1, "at_most": MAX_IMAGES}
    )
    calibration: tuple[str, ...] = ("training",)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limit: int | None = field(default=None, metadata={"at_least": 1, "at_most": MAX_IMAGES})
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    factorial: Mapping[str, Factors] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    model_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    source: TomlFile | None = None
    description: str = ""
    overridden: Mapping[str, str] = field(default_factory=dict)

    def error(self, problem: object, *keys: str, value: object = None) -> BenchError:
        """A `BenchError` with the file, line and key that caused ``problem``, where known."""
        if keys[0] in self.overridden:
            return BenchError(f"{self.overridden[keys[0]]}: {problem}")
        if self.source is None or self.source.line(*keys) is None:
            return BenchError(f"{'.'.join(keys)}: {problem}")
        return self.source.error(str(problem), *keys, value=value)


def find_suite(name: str) -> Path:
    """The file of the suite called ``name``: a path to a TOML file, or the name of a bundled suite.

    Raises:
        BenchError: there is neither; near matches are named.
    """
    problem = unusable(Path(name))
    if problem is not None:
        raise BenchError(f"suite {problem}")
    path = expanded(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if os.path.lexists(path):  # if it is no file, or a link to none, reading it says so
            return path
        raise BenchError(f"there is no suite file {name}")
    bundled = suite_files()
    if name in bundled:
        return bundled[name]
    if path.is_file():
        return path
    raise unknown("suite", name, bundled)


def suite_files() -> dict[str, Path]:
    """The bundled suites: name -> file."""
    return {path.stem: path for path in sorted(SUITES_FOLDER.glob("*.toml"))}


def read_suite(path: Path) -> Suite:
    """Read a suite file.

    Raises:
        BenchError: naming file, line and key: a syntax error, an unknown or missing key, a value of
            the wrong type or out of range.
    """
    file = TomlFile.read(path)
    file.check_keys(KEYS)
    for key in ("task", "models"):
        if key not in file.data:
            raise BenchError(f"{path}: the key {key!r} is missing")
    suite = Suite(
        name=file.value(str, path.stem, "name"),
        description=file.value(str, "", "description"),
        task=file.value(str, "", "task"),
        models=_models(file),
        checkpoints=_checkpoints(file),
        model_args=_model_args(file),
        methods=file.items(str, ("*",), "methods"),
        bits=file.items(str, Suite.bits, "bits"),
        protocols=file.items(str, Suite.protocols, "protocols"),
        seeds=file.items(int, Suite.seeds, "seeds"),
        single_draw=file.items(str, (), "single_draw"),
        calibration_images=file.value(int, None, "calibration_images"),
        calibration=file.items(str, Suite.calibration, "calibration"),
        sources={name: file.table("sources", name) for name in file.table("sources")},
        limit=file.value(int, None, "limit"),
        parameters={name: file.table("parameters", name) for name in file.table("parameters")},
        variants={name: _variants(file, name) for name in file.table("variants")},
        factorial={name: read_factors(file, name) for name in file.table("factorial")},
        task_options=file.table("task_options"),
        scopes=file.items(str, (), "scopes"),
        include=file.items(str, (), "include"),
        source=file,
    )
    check_values(suite)
    return suite


def _models(file: TomlFile) -> tuple[str, ...]:
    """The models: a list of names, or tables ``[models.NAME]``.

    Raises:
        BenchError: there is none, or something else; with file and line.
    """
    if not isinstance(file.data["models"], dict):
        return file.items(str, (), "models")
    if not file.table("models"):
        raise file.error("there is no model; write [models.NAME]", "models")
    return tuple(file.table("models"))


def _checkpoints(file: TomlFile) -> dict[str, Path]:
    """What ``[models.NAME]`` says of weights.

    Raises:
        BenchError: a key that such a table does not have, or no path; with file and line.
    """
    found: dict[str, Path] = {}
    for name, table in _tables_of_models(file):
        for key in table:
            if key not in MODEL_KEYS:
                there = " and ".join(MODEL_KEYS)
                raise file.error(f"unknown key {key!r}; there are {there}", "models", name, key)
        if "checkpoint" in table:
            path = expanded(file.value(str, "", "models", name, "checkpoint"))
            if (problem := unusable(path)) is not None:
                raise file.error(problem, "models", name, "checkpoint")
            found[name] = path
    return found


def _model_args(file: TomlFile) -> dict[str, Mapping[str, Any]]:
    """What ``[models.NAME.model_args]`` says of how models are built.

    Raises:
        BenchError: a value that is no number, text, truth value or list of whole numbers; with file and line.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name, table in _tables_of_models(file):
        arguments = file.table("models", name, "model_args") if "model_args" in table else {}
        for key, value in arguments.items():
            if not _is_argument(value):
                problem = f"expected a number, text, truth value or list of whole numbers, not {shown(value)}"
                raise file.error(problem, "models", name, "model_args", key)
        if arguments:
            found[name] = arguments
    return found


def _tables_of_models(file: TomlFile) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(file.data["models"], dict):
        return []
    return [(name, file.table("models", name)) for name in file.table("models")]


def _is_argument(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(item) is int for item in value)
    return isinstance(value, bool | int | float | str)


def with_included(suite: Suite) -> list[Suite]:
    """Return ``suite`` and the suites that it includes; those cannot include others.

    Raises:
        BenchError: there is no such suite, or it includes one itself; with file and line.
    """
    suites = [suite]
    if len(suite.include) > MAX_INCLUDED:
        problem = f"{len(suite.include)} suites, more than {MAX_INCLUDED}"
        raise suite.error(problem, "include")
    for name in suite.include:
        try:
            other = read_suite(find_suite(name))
        except BenchError as error:
            raise suite.error(error, "include", value=name) from None
        if other.include:
            raise suite.error(f"suite {name!r} includes others itself", "include", value=name)
        suites.append(other)
    return suites


def _variants(file: TomlFile, method: str) -> dict[str, dict[str, Any]]:
    """The settings under ``[variants.METHOD.LABEL]`` by label."""
    return {
        label: file.table("variants", method, label) for label in file.table("variants", method)
    }


def check_values(suite: Suite) -> None:
    """Check everything about a suite that needs no registry.

    Raises:
        BenchError: naming file, line and key where they are known.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", suite.name):
        raise suite.error(f"{shown(suite.name)} cannot name a folder", "name")
    check_texts(suite)
    for bits in suite.bits:
        check_bits(suite, bits)
    for protocol in suite.protocols:
        if protocol not in PROTOCOLS:
            raise suite.error(
                f"unknown protocol {protocol!r}{hint(protocol, PROTOCOLS)}",
                "protocols",
                value=protocol,
            )
    for item in fields(Suite):
        value = getattr(suite, item.name)
        for one in value if isinstance(value, tuple) else (value,):
            problem = out_of_bounds(one, item.metadata) if item.metadata else None
            if problem is not None:
                raise suite.error(problem, item.name, value=one)
    for method, labels in suite.variants.items():
        check_labels(suite, method, labels)
    for method, factors in suite.factorial.items():
        check_factorial(suite, method, factors)


def check_texts(suite: Suite) -> None:
    """Refuse names that are longer than any name is.

    Raises:
        BenchError: naming file, line and key where they are known.
    """
    lists = ("models", "methods", "bits", "protocols", "single_draw", "scopes", "include")
    for key in (*lists, "calibration"):
        for text in getattr(suite, key):
            problem = unusable(text)
            if problem is not None:
                raise suite.error(problem, key, value=text)
    for key in ("parameters", "variants", "factorial", "sources"):
        for text in getattr(suite, key):
            problem = unusable(text)
            if problem is not None:
                raise suite.error(problem, key, text)
    problem = unusable(suite.task)
    if problem is not None:
        raise suite.error(problem, "task")


def check_labels(suite: Suite, method: str, labels: Collection[str]) -> None:
    """Refuse a method with variants that has none, and labels of the wrong form.

    Raises:
        BenchError: naming file, line and key where they are known.
    """
    if not labels:
        raise suite.error("there is no variant; write [variants.METHOD.LABEL]", "variants", method)
    for label in labels:
        if not re.fullmatch(LABEL, label):
            raise suite.error(
                f"{shown(label)} is not a label; use lower-case letters, digits and + . _ -, "
                "a letter, digit or + first",
                "variants",
                method,
                label,
            )


def check_factorial(suite: Suite, method: str, factors: Factors) -> None:
    """Refuse a factorial that is none, and one of a method that has variants too.

    Raises:
        BenchError: naming file, line and key where they are known.
    """
    if method in suite.variants:
        raise suite.error(
            "the method has variants too; it can have one of both", "factorial", method
        )
    for keys, problem in problems(factors):
        raise suite.error(problem, "factorial", method, *keys)


def check_bits(suite: Suite, text: str) -> None:
    """Refuse a bit width that `BitWidth.parse` refuses.

    Raises:
        BenchError: naming file, line and key where they are known.
    """
    try:
        BitWidth.parse(text)
    except MethodError as error:
        problem = str(error) if shown(text) in str(error) else f"{shown(text)}: {error}"
        raise suite.error(problem, "bits", value=text) from None
