"""The trials of a search, kept in a file as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import write_atomically
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.bench.records.strict_json import NotStrictJson, parse
from vit_ptq_bench.bench.tuning.space import Configuration, Space
from vit_ptq_bench.values import shown

FILE = "trials.jsonl"

LAYOUT = 1
"""Of the file; it stands in the first line."""

Status = Literal["ok", "refused"]


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        configuration: which.
        value: of the objective; None if the method refused.
        seconds: that it took.
        message: why it was refused.
    """

    configuration: Configuration
    value: float | None
    seconds: float
    message: str = ""

    @property
    def status(self) -> Status:
        """Whether it has a value."""
        return "refused" if self.value is None else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as JSON-ready data."""
        return {
            "configuration": self.configuration.to_dict(),
            "status": self.status,
            "value": self.value,
            "seconds": round(self.seconds, 3),
            "message": self.message,
        }


class TrialFile:
    """A file of JSON lines: what is searched, then the trials in order; it is whole at any time.

    Args:
        folder: that holds it.
        facts: all that decides the trials but their number, JSON-ready: with others, trials do not mix.
        space: that the configurations are of.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], space: Space) -> None:
        self.path = folder / FILE
        self._facts = dict(facts) | {"layout": LAYOUT}
        self._space = space

    def read(self) -> list[Trial]:
        """Return the trials that are there; none without a file.

        Raises:
            BenchError: they are of another search, or the file is damaged; it says what to do.
        """
        if not self.path.exists():
            return []
        try:
            lines = [parse(line) for line in self.path.read_bytes().splitlines()]
            self._require_same(lines[0] if lines else {})
            return [self._trial(line) for line in lines[1:]]
        except BenchError:
            raise
        except (NotStrictJson, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(
                f"{self.path}: damaged or edited ({shown(str(error))}); remove it to search anew"
            ) from error

    def write(self, trials: Sequence[Trial]) -> None:
        """Write all trials.

        Raises:
            OSError: the file cannot be written.
        """
        lines = [self._facts, *(trial.to_dict() for trial in trials)]
        text = "".join(f"{canonical_json(line)}\n" for line in lines)
        write_atomically(self.path, text.encode())

    def _require_same(self, there: Mapping[str, Any]) -> None:
        """Refuse trials of another search."""
        mine = json.loads(canonical_json(self._facts))  # tuples are lists in a file
        for name in sorted(mine.keys() | there.keys()):
            if mine.get(name) != there.get(name):
                raise BenchError(
                    f"{self.path} holds the trials of another search ({name}: "
                    f"{shown(there.get(name))} there, {shown(mine.get(name))} here); "
                    "choose another --output, or remove it"
                )

    def _trial(self, line: Mapping[str, Any]) -> Trial:
        own = line["configuration"]
        configuration = Configuration(**own)
        self._space.number(configuration)  # a ValueError where it is none of the space
        value = line["value"]
        if (line["status"] == "ok") != isinstance(value, float):
            raise ValueError(f"status {line['status']!r} with value {value!r}")
        return Trial(configuration, value, float(line["seconds"]), str(line["message"]))
