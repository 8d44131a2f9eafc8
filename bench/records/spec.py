"""The specification of a run: everything that decides its result, and the id made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records import checks
from vit_ptq_bench.bench.records.source import SourceSpec
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.table_changes import SETTING as TABLE
from vit_ptq_bench.methods.quantization.transforms.names import SETTING

REFERENCE_METHOD = "fp32"
"""The method that leaves a model in full precision."""


class WrongSpec(BenchError):
    """Data that should be a specification are none; the text says what is wrong."""


@dataclass(frozen=True)
class MethodSpec:
    """A method with all its settings.

    Attributes:
        name: as registered.
        version: of the class; another version may give other results.
        parameters: every setting, defaults included (JSON-ready).
        transforms: what is done to the model before, by name and in order.
        table: how the bit table differs from the method's own, by name and in order.
    """

    name: str
    version: int
    parameters: Mapping[str, Any]
    transforms: tuple[str, ...] = ()
    table: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as a suite has them: the parameters, and of the other two what is there."""
        return dict(self.parameters) | self._lists()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; ``transforms`` and ``table`` are left out where there are none."""
        data = asdict(self)
        del data[SETTING], data[TABLE]
        return data | self._lists()

    def _lists(self) -> dict[str, list[str]]:
        lists = {SETTING: list(self.transforms), TABLE: list(self.table)}
        return {key: names for key, names in lists.items() if names}


@dataclass(frozen=True)
class ModelSpec:
    """A model; ``weights`` identifies its parameters (a hash, or a published name)."""

    name: str
    weights: str | None


@dataclass(frozen=True)
class TaskSpec:
    """A task with its data.

    Attributes:
        name: as registered.
        version: of the class.
        data: hash over evaluation and calibration data.
        limit: evaluation images at most; None: all.
    """

    name: str
    version: int
    data: str | None
    limit: int | None


@dataclass(frozen=True)
class CalibrationSpec:
    """The calibration images.

    Attributes:
        images: how many.
        draw: the seed that draws them.
        content: hash over their content; None where the task's data cover it, or the source.
        source: where they come from; None: from the task's training data.
    """

    images: int
    draw: int
    content: str | None = None
    source: SourceSpec | None = None

    @property
    def source_title(self) -> str:
        """The source in tables; empty for the training data."""
        return "" if self.source is None else self.source.title

    @property
    def marking(self) -> str:
        """What has to be said of the source, in words; empty for the training data."""
        return "" if self.source is None else self.source.marking

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; ``content`` and ``source`` are left out where there is none."""
        data: dict[str, Any] = {"images": self.images, "draw": self.draw}
        if self.content is not None:
            data["content"] = self.content
        return data if self.source is None else data | {"source": self.source.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            WrongSpec: ``content`` or ``source`` are none.
            TypeError: a part too many.
        """
        content = data.get("content", "")
        if not checks.text(content):
            raise WrongSpec(f"spec.calibration.content must be a text, not {checks.short(content)}")
        if "source" not in data:
            return cls(**data)
        try:
            return cls(**{**data, "source": SourceSpec.from_dict(data["source"])})
        except ValueError as error:
            raise WrongSpec(f"spec.calibration.source {error}") from error


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the result of a run.

    Attributes:
        method, model, task: what runs.
        bits: bit width, like ``W4A4``.
        protocol: ``equal`` or ``authors``.
        table: how each site is represented.
        calibration: the calibration set.
        seed: state of every random generator.
        precision: of the arithmetic that simulates quantization.
        scope: what of a detector is quantized; None where it is always the whole model.
        allocation: version of the search that shares bits out, where ``bits`` ask for it.
    """

    method: MethodSpec
    model: ModelSpec
    task: TaskSpec
    bits: str
    protocol: str
    table: Mapping[str, TensorSpec]
    calibration: CalibrationSpec
    seed: int
    precision: str = "float32"
    scope: str | None = None
    allocation: int | None = None

    @cached_property
    def run_id(self) -> str:
        """Identity of the run: 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()[:16]

    @property
    def is_reference(self) -> bool:
        """Whether this is the full-precision run of a model."""
        return self.method.name == REFERENCE_METHOD

    @property
    def facts(self) -> dict[str, str]:
        """What runs, in a few words: what a saved model says of itself beside the specification."""
        return {
            "run_id": self.run_id,
            "task": self.task.name,
            "model": self.model.name,
            "method": self.method.name,
            "bits": self.bits,
            "protocol": self.protocol,
        }

    def title(self, variant: str | None) -> str:
        """Name of the method under a suite's label, for people: ``mgrq +obwr``, ``minmax on psaq-vit``."""
        name = self.method.name if variant is None else f"{self.method.name} {variant}"
        source = self.calibration.source_title
        return f"{name} on {source}" if source else name

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; ``scope`` and ``allocation`` are left out where there are none."""
        data = {
            "method": self.method.to_dict(),
            "model": asdict(self.model),
            "task": asdict(self.task),
            "bits": self.bits,
            "protocol": self.protocol,
            "table": table_to_dict(self.table),
            "calibration": self.calibration.to_dict(),
            "seed": self.seed,
            "precision": self.precision,
        }
        more = {"scope": self.scope, "allocation": self.allocation}
        return data | {key: value for key, value in more.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            WrongSpec: a part is missing, has the wrong type, or is not known.
        """
        for path, (kind, check) in LAYOUT.items():
            value: Any = data
            for key in path.split("."):
                if not isinstance(value, dict) or key not in value:
                    raise WrongSpec(f"missing: spec.{path}")
                value = value[key]
            if not check(value):
                raise WrongSpec(f"spec.{path} must be {kind}, not {checks.short(value)}")
        if not checks.optional(checks.whole)(data.get("allocation")):
            raise WrongSpec(
                f"spec.allocation must be a whole number, not {checks.short(data['allocation'])}"
            )
        lists = {key: data["method"].get(key, []) for key in (SETTING, TABLE)}
        for key, names in lists.items():
            if not checks.list_of(checks.text)(names):
                raise WrongSpec(
                    f"spec.method.{key} must be a list of texts, not {checks.short(names)}"
                )
        try:
            spec = cls(
                method=MethodSpec(
                    **{**data["method"], **{key: tuple(names) for key, names in lists.items()}}
                ),
                model=ModelSpec(**data["model"]),
                task=TaskSpec(**data["task"]),
                calibration=CalibrationSpec.from_dict(data["calibration"]),
                table=table_from_dict(data["table"]),
                **{key: data[key] for key in ("bits", "protocol", "seed", "precision")},
                scope=data.get("scope"),
                allocation=data.get("allocation"),
            )
        except (MethodError, TypeError) as error:  # a bit width that is none, a part too many
            raise WrongSpec(f"spec: {error}") from error
        if spec.to_dict() != data:
            unknown = sorted(set(data) - set(spec.to_dict()))
            raise WrongSpec(f"spec has parts that this program does not know: {unknown or 'table'}")
        return spec


LAYOUT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method.name": ("a text", checks.text),
    "method.version": ("a whole number", checks.whole),
    "method.parameters": ("an object", checks.mapping),
    "model.name": ("a text", checks.text),
    "model.weights": ("a text or null", checks.optional(checks.text)),
    "task.name": ("a text", checks.text),
    "task.version": ("a whole number", checks.whole),
    "task.data": ("a text or null", checks.optional(checks.text)),
    "task.limit": ("a whole number or null", checks.optional(checks.whole)),
    "bits": ("a text", checks.text),
    "protocol": ("a text", checks.text),
    "table": ("a bit table", checks.table),
    "calibration.images": ("a whole number", checks.whole),
    "calibration.draw": ("a whole number", checks.whole),
    "seed": ("a whole number", checks.whole),
    "precision": ("a text", checks.text),
}
"""Every part that must be there: what it must be, in words and as a check; a dot goes one level down."""


def canonical_json(obj: Any) -> str:
    """Return the one JSON text of ``obj``: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: a float is not finite.
        TypeError: something has no JSON form.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)


def table_to_dict(table: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """Return a bit table as JSON-ready data."""
    return {site: spec.to_dict() for site, spec in table.items()}


def table_from_dict(data: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorSpec]:
    """Inverse of `table_to_dict`, for any set of sites.

    Raises:
        MethodError: an unknown field, or a value out of range.
    """
    return {site: TensorSpec.from_dict(spec) for site, spec in data.items()}
