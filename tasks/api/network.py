"""The description of a network: what builds it again without its weights, as saved models hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.values import shown

PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class Network:
    """An architecture by name, and the preprocessing of its images; nothing in it is ever executed.

    Attributes:
        builder: whose architecture it is: ``timm``, ``bundled`` or ``mmdet``.
        architecture: its name there.
        arguments: that it is built with (numbers, texts, truth values, and lists of them).
        preprocessing: of the images; for ``timm`` its data config.
    """

    builder: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`.

        Raises:
            TaskError: it is no description, or holds values that none has.
        """
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise TaskError(
                f"a network is described by {sorted(cls.__dataclass_fields__)}, not by {shown(data)}"
            )
        for name in ("builder", "architecture"):
            if not isinstance(data[name], str):
                raise TaskError(f"the {name} of a network is a text, not {shown(data[name])}")
        for name in ("arguments", "preprocessing"):
            if not isinstance(data[name], dict) or not all(map(_is_plain, data[name].values())):
                raise TaskError(
                    f"the {name} of a network are numbers, texts, truth values or lists of them by name, "
                    f"not {shown(data[name])}"
                )
        return cls(**data)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)
