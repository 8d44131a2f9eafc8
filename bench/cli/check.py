"""`bench check`: whether contributed records can be merged."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import RESULTS, add_json, add_plugin
from vit_ptq_bench.bench.cli.text import print_json
from vit_ptq_bench.values import printable


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "check",
        help="check contributed records before they are merged",
        description="Check records: layout, ids, outcomes, methods, data, and whether figures are plausible.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "result", metavar="RESULT", nargs="+", help="folder of records, or a record file"
    )
    parser.add_argument(
        "--against",
        metavar="DIR",
        action="append",
        type=Path,
        help=f"folder of the project's own records; may be repeated (default: {RESULTS} and its folders)",
    )
    add_json(parser)
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a verdict on each record; return 1 if one is refused."""
    from vit_ptq_bench.bench.contract.contribution import check_contribution, known_of
    from vit_ptq_bench.bench.planning import plugins
    from vit_ptq_bench.bench.records.store import folders_of_records

    plugins.load(Path(file) for file in arguments.plugin or ())
    known = known_of(arguments.against or folders_of_records(RESULTS))
    verdicts = [one for text in arguments.result for one in check_contribution(text, known)]
    counts = Counter(one.level for one in verdicts)
    if arguments.json:
        print_json(
            [{"source": v.source, "level": v.level, "words": list(v.words)} for v in verdicts]
        )
    else:
        for one in verdicts:
            if one.level != "ok":
                print(f"{one.level:<8}{one.source}: {printable('; '.join(one.words))}")
        print(", ".join(f"{counts[level]} {level}" for level in ("ok", "look", "refused")))
    return 1 if counts["refused"] else 0
