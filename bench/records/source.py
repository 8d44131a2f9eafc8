"""Where a run's calibration images came from, if not from the task's training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from vit_ptq_bench.bench.records import checks
from vit_ptq_bench.methods.quantization.calibration.sources import (
    FOLDER,
    PSAQ,
    SYNTHESIS_VERSION,
    SynthesisSettings,
)

SHORT_HASH = 8
"""Hexadecimal digits that stand for a folder's content in titles."""


def _is_other_source(value: Any) -> bool:
    """Whether it is the name of a source that has to be noted."""
    return value in (FOLDER, PSAQ)


FORMS: dict[str, tuple[str, checks.Check]] = {
    "name": (f"{FOLDER} or {PSAQ}", _is_other_source),
    "version": ("a whole number", checks.whole),
    "parameters": ("an object", checks.mapping),
    "data": ("a text", checks.text),
}
"""Of each part: what it must be, in words and as a check."""


@dataclass(frozen=True)
class SourceSpec:
    """A source of calibration images other than the training data.

    Attributes:
        name: ``folder`` or ``psaq-vit``.
        version: of what makes the images; None where they are read.
        parameters: every setting of what makes them, JSON-ready; None where they are read.
        data: hash over the contents of all images there are to draw; None where they are made.
    """

    name: str
    version: int | None = None
    parameters: Mapping[str, Any] | None = None
    data: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether there is no real image among them."""
        return self.name == PSAQ

    @property
    def title(self) -> str:
        """The source in tables: its name, with what tells it from others of that name."""
        if not self.is_made:
            return f"{self.name} {(self.data or '').removeprefix('sha256:')[:SHORT_HASH]}"
        usual = asdict(SynthesisSettings())
        own = self.parameters or {}
        changed = [f"{key}={value}" for key, value in own.items() if usual.get(key) != value]
        if self.version != SYNTHESIS_VERSION:
            changed.append(f"version={self.version}")
        return " ".join([self.name, *changed])

    @property
    def marking(self) -> str:
        """The same in words, so that nobody takes these images for those that others calibrate on."""
        if self.is_made:
            return f"0 real images, calibration on those made by {self.title}"
        return f"calibration on images of another {self.title}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; what a source does not have is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: data that describe no source; the text says what is wrong.
        """
        if not isinstance(data, dict):
            raise ValueError(f"must be an object, not {checks.short(data)}")
        for key, value in data.items():
            if key not in FORMS:
                raise ValueError(f"has a part {checks.short(key)} that this program does not know")
            words, check = FORMS[key]
            if not check(value):
                raise ValueError(f"{key} must be {words}, not {checks.short(value)}")
        wanted = {PSAQ: {"name", "version", "parameters"}, FOLDER: {"name", "data"}}
        if data.keys() != wanted.get(data.get("name", ""), ()):
            raise ValueError(f"has the parts {sorted(data)}, which no source has")
        return cls(**data)
