"""`bench check-method`: hold a method against the contract."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_plugin
from vit_ptq_bench.values import printable

if TYPE_CHECKING:
    from vit_ptq_bench.bench.contract.trial import Finding

MARKS = {"holds": "ok", "broken": "FAIL", "does not apply": "-"}


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "check-method",
        help="hold a method against what every method must keep",
        description="Try a method on tiny models: bits, seeds, memory, images, families. Seconds, no data.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "method", metavar="NAME", help="registered method, or a Python file that registers some"
    )
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what holds and what does not; return 1 if anything does not."""
    import torch

    from vit_ptq_bench.bench.contract.trial import try_method
    from vit_ptq_bench.bench.planning import registry

    torch.set_num_threads(1)  # the models are small: more threads would wait for each other
    names = _names(arguments)
    broken = 0
    for name in names:
        print(f"{name}:", flush=True)
        broken += _tell(try_method(registry.method_class(name)))
    if broken:
        print("1 clause is broken" if broken == 1 else f"{broken} clauses are broken")
        return 1
    print("the contract holds")
    return 0


def _names(arguments: argparse.Namespace) -> list[str]:
    """The methods to try; of a file those that it registers.

    Raises:
        BenchError: the file registers none.
    """
    from vit_ptq_bench.bench.errors import BenchError
    from vit_ptq_bench.bench.planning import plugins, registry

    plugins.load(Path(file) for file in arguments.plugin or ())
    if not arguments.method.endswith(".py"):
        return [arguments.method]
    before = set(registry.methods())
    plugins.load([Path(arguments.method)])
    new = sorted(set(registry.methods()) - before)
    if not new:
        raise BenchError(
            f"{arguments.method} registers no method; decorate the class with @register_method"
        )
    return new


def _tell(findings: Iterable[Finding]) -> int:
    """Print each clause; return how many are broken."""
    broken = 0
    for one in findings:
        print(
            f"  {MARKS[one.outcome]:<5}{one.check.says} ({one.on}, {one.seconds:.1f} s)", flush=True
        )
        if one.outcome == "broken":
            broken += 1
            print(f"       {printable(one.words)}")
            print(f"       to do: {one.check.advice}")
    return broken
