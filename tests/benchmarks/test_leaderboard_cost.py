"""The leaderboard of 100,000 results, from records in memory to markdown and CSV."""

from __future__ import annotations

from itertools import product

from tests.bench.samples import make_record
from vit_ptq_bench.bench.report.leaderboard import to_csv
from vit_ptq_bench.bench.report.markdown import render

METHODS, MODELS, BITS, SEEDS = 25, 40, ("W3A3", "W4A4", "W6A6", "W8A8"), 25


def test_leaderboard_of_100000_results(benchmark, ratio):
    cells = product(range(METHODS), range(MODELS), BITS, range(SEEDS))
    records = [
        make_record(
            method=f"m{method}",
            model=f"v{model}",
            bits=bits,
            seed=seed,
            value=50 + method + seed / 50,
        )
        for method, model, bits, seed in cells
    ]
    assert len(records) == 100_000

    def write():
        return render(records, lambda record: None, []), to_csv(records)

    markdown, table = benchmark.pedantic(write, rounds=1)
    assert markdown.count("\n### ") == MODELS * len(BITS)
    assert table.count("\n") == len(records) + 1
    ratio(benchmark)
