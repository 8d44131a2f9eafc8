"""`bench show`: one record in full, or the card of a saved model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_json, add_results
from vit_ptq_bench.bench.cli.text import print_json

SAVED = ".safetensors"


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("show", help="show one result, or the card of a saved model")
    parser.set_defaults(function=run)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="run id (or its beginning), a record file, or a model saved by --save-models",
    )
    add_results(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the record, or the card, and return the exit status."""
    if arguments.run.endswith(SAVED):
        _show_card(Path(arguments.run), arguments.json)
        return 0
    from vit_ptq_bench.bench.records.store import load_record
    from vit_ptq_bench.bench.report.show import describe

    _, record = load_record(arguments.run, arguments.results)
    if arguments.json:
        print_json(record.to_dict())
    else:
        print(describe(record))
    return 0


def _show_card(path: Path, as_json: bool) -> None:
    from vit_ptq_bench.bench.deployment.card import model_card
    from vit_ptq_bench.bench.deployment.saved import stated_spec
    from vit_ptq_bench.methods.quantization.storage import read_saved

    saved = read_saved(path)
    card = model_card(saved, stated_spec(saved))
    if as_json:
        print_json({**saved.metadata, "table": saved.table.to_dict(), "signed": saved.signed})
    else:
        print(card)
