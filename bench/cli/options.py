"""Options of the command line, made from the dataclasses that hold them."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path
from typing import Any, Literal

from vit_ptq_bench.bench.planning.options import comma_list, environment_name, flag, options_of
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.tasks import TaskOptions

RESULTS = Path("results")

Group = argparse._ArgumentGroup | argparse.ArgumentParser


def add_options(group: Group, cls: type, *, only: str = "", leave_out: str = "") -> None:
    """Add the options of a dataclass (or ``only`` one) to a parser; what is not given is None."""
    for name, kind, facts, _ in options_of(cls):
        if name == leave_out or (only and name != only):
            continue
        settings = _argument(kind) | {"help": facts["help"], "metavar": facts.get("metavar")}
        group.add_argument(flag(name), dest=name, default=None, **settings)


def _argument(kind: Any) -> dict[str, Any]:
    """How argparse reads an option of a type; what the text means is found out later, in one place."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is tuple:
        if typing.get_args(kind)[0] is Path:
            return {"action": "append"}
        return {"action": "extend", "type": comma_list}
    return {}


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """``--plugin``."""
    add_options(parser, RunOptions, only="plugin")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_results(parser: argparse.ArgumentParser) -> None:
    """``--results``."""
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help="folder with the records of a sweep (default: %(default)s)",
    )


def add_task_options(parser: argparse.ArgumentParser, leave_out: str = "") -> None:
    """Where data and weights are, and how much of the data to use."""
    group = parser.add_argument_group(
        "data and weights",
        "also from a config file ([tasks.<task>] in bench.toml) or the environment "
        f"({environment_name('<task>', '<option>')}, like {environment_name('imagenet', 'data_dir')})",
    )
    add_options(group, TaskOptions, leave_out=leave_out)
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="config file (default: bench.toml in the current folder, if there)",
    )
