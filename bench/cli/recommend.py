"""`bench recommend`: the smallest result of a model that loses little enough."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_json, add_options, add_results
from vit_ptq_bench.bench.cli.text import print_json, print_rows
from vit_ptq_bench.bench.planning.options import resolved, words_source
from vit_ptq_bench.bench.planning.recommend_options import RecommendOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.report.recommendation import Candidate, Recommendation

DESCRIPTION = """\
Of all rows of a model whose drop in the first metric against full precision is at most some points, print
the one of the smallest saved size, those behind it, and the command that repeats the run. A row counts by
its drop itself, the mean over its seeds; beside it stands whether the whole 95 % interval of the drop, over
images, lies within the points."""

WIDTH, SHORT, RUNNERS_UP = 80, 8, 9
"""Columns of the table; characters of a run's id there; rows behind the answer."""

OPERATIONS = "bit-operations"

LOOKED_UP = """\
*: the run did not count them; they are those of another run of the same model
and bit table, from which they follow."""

EXPLAINED = """\
drop: points lost against full precision on the same images, the mean over
seeds, with its 95 % interval over images; sure: whether the whole interval lies
within {allowed} (?: the records keep nothing per image). Of rows that cost
the same to a hundredth the one that loses least comes first."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "recommend",
        help="the smallest result of a model that loses at most some points",
        description=DESCRIPTION,
    )
    parser.set_defaults(function=run)
    add_options(parser, RecommendOptions)
    add_results(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer and return the exit status."""
    options = resolved(RecommendOptions, [words_source(vars(arguments))])
    from vit_ptq_bench.bench.report.recommendation import recommend

    found = recommend(
        arguments.results,
        options.model,
        options.max_drop,
        task=options.task,
        protocol=options.protocol,
        by=options.by,
    )
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found, str(arguments.results))
    return 0


def _print(found: Recommendation, results: str) -> None:
    from vit_ptq_bench.bench.report.classes import MARK, in_words
    from vit_ptq_bench.bench.report.recommendation import points

    shown = found.found[: RUNNERS_UP + 1]
    print(
        f"{found.model}, {found.task}: full precision has {found.reference.value:.2f} % {found.metric}"
    )
    print(f"{len(found.found)} of {found.considered} rows lose at most {points(found.allowed)}\n")
    _print_chosen(found, results)
    several = {one.place.protocol for one in found.found}, {one.place.scope for one in found.found}
    print()
    _print_table(found, [len(kinds) > 1 for kinds in several])
    print(f"\n{EXPLAINED.format(allowed=points(found.allowed))}")
    if any(_is_looked_up(one, found.by) for one in shown):
        print(LOOKED_UP)
    if words := in_words(name for one in shown for name in one.row.classes):
        print(textwrap.fill(f"{MARK}: does not compare with the others. {words}.", WIDTH))
    for sentence in found.left_out:
        print(f"left out: {sentence}")


def _print_chosen(found: Recommendation, results: str) -> None:
    from vit_ptq_bench.bench.report.recommendation import COSTS, points

    chosen = found.found[0]
    scope = f", scope {chosen.place.scope}" if chosen.place.scope else ""
    unit, words = COSTS[found.by]
    print(f"{chosen.name} at {chosen.place.bits}, protocol {chosen.place.protocol}{scope}")
    looked_up = ", as another run of the same bit table counted" * _is_looked_up(chosen, found.by)
    print(f"  least {words}: {chosen.cost(found.by):.2f} {unit}{looked_up}")
    sure = {
        True: f"its whole interval lies within {points(found.allowed)}",
        False: f"its interval reaches beyond {points(found.allowed)}",
        None: "its interval is not known",
    }[chosen.drop.within(found.allowed)]
    print(f"  drop: {chosen.drop.points:.2f}{_interval(chosen)}; {sure}")
    print(f"  repeat: bench repeat {chosen.row.record.run_id} --results {results}")


def _is_looked_up(one: Candidate, by: str) -> bool:
    return by == OPERATIONS and one.looked_up


def _interval(one: Candidate) -> str:
    low, high = one.drop.low, one.drop.high
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _print_table(found: Recommendation, told: Sequence[bool]) -> None:
    """The answer and those behind it, in at most `WIDTH` columns: the names of rows are cut."""
    head = ["method", "bits", "protocol", "scope", "G", "MB", "s", "drop", "sure", "run"]
    keep = [True, True, *told, found.by == OPERATIONS, True, True, True, True, True]
    shown = found.found[: RUNNERS_UP + 1]
    rows = [_line(one, found.allowed) for one in shown]
    lines = [[cell for cell, kept in zip(row, keep, strict=True) if kept] for row in (head, *rows)]
    rest = sum(max(map(len, column)) + 2 for column in list(zip(*lines, strict=True))[1:])
    for line in lines:
        line[0] = _cut(line[0], max(len(head[0]), WIDTH - rest))
    print_rows(lines[0], lines[1:])
    if len(found.found) > len(shown):
        print(f"and {len(found.found) - len(shown)} more (--json lists all)")


def _line(one: Candidate, allowed: float) -> list[str]:
    size, seconds, operations = one.size, one.row.seconds, one.cost(OPERATIONS)
    return [
        one.name,
        one.place.bits,
        one.place.protocol,
        one.place.scope or "all",
        "" if operations is None else f"{operations:.2f}{'*' * one.looked_up}",
        "" if size is None else f"{size:.2f}",
        "" if seconds is None else f"{seconds:.1f}",
        f"{one.drop.points:.2f}{_interval(one)}",
        {True: "yes", False: "no", None: "?"}[one.drop.within(allowed)],
        one.row.record.run_id[:SHORT],
    ]


def _cut(name: str, width: int) -> str:
    """A name in so many columns; the mark of a class behind it stays."""
    from vit_ptq_bench.bench.report.classes import MARK

    label, space, mark = name.partition(f" {MARK}")
    if len(name) <= width:
        return name
    return f"{label[: width - len(space + mark) - 3]}...{space}{mark}"
