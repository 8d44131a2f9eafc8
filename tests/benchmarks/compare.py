"""Compare the ratios of a run of the performance tests with the stored ones.

    python -m tests.benchmarks.compare NEW.json [--baseline OLD.json] [--store]

Exit status 1 if a ratio has grown by more than 30 %, or has no baseline; what is above its target is said,
the tests fail above their limits themselves. ``--store`` makes the run the baseline of the tests in it
instead, and leaves those of other tests. Ratios of one processor are not those of another (what bounds a
forward pass and what bounds a search differ), so on another machine than the stored baseline's ``--baseline``
takes a run of an older revision on the same machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tabulate import tabulate

BASELINE = Path(__file__).parent / "baseline.json"
GROWTH = 1.3
FINGERPRINTS = ("ratio", "iteration")
"""Numbers of a benchmark that are ratios and can be compared between machines."""


def read_ratios(path: Path) -> dict[str, dict[str, float]]:
    """Return test -> its ratios and targets, from a file of pytest-benchmark."""
    data = json.loads(path.read_text(encoding="utf-8"))
    kept = (*FINGERPRINTS, "target", "iteration_target")
    return {
        entry["fullname"].removeprefix("tests/benchmarks/"): {
            key: entry["extra_info"][key]
            for key in kept
            if entry["extra_info"].get(key) is not None
        }
        for entry in data["benchmarks"]
    }


def compare(
    new: dict[str, dict[str, float]], old: dict[str, dict[str, float]]
) -> tuple[list[list[str]], bool]:
    """Return the rows of a table, and whether anything got worse than allowed or has no baseline."""
    rows, failed = [], False
    for name, found in sorted(new.items()):
        for key in FINGERPRINTS:
            if key not in found:
                continue
            value, before = found[key], old.get(name, {}).get(key)
            target = found.get("target" if key == "ratio" else "iteration_target")
            words = []
            if before is None:
                words.append("no baseline: keep one with --store")
            elif value > GROWTH * before:
                words.append(f"grown by {100 * (value / before - 1):.0f} %")
            failed |= bool(words)
            if target is not None and value > target:
                words.append("above its target")
            texts = [
                "" if number is None else f"{number:.3g}" for number in (value, before, target)
            ]
            rows.append([name, key, *texts, ", ".join(words)])
    return rows, failed


def read_stored() -> dict[str, dict[str, float]]:
    """Return the stored baseline, empty where there is none."""
    return json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.is_file() else {}


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare performance ratios with the baseline.")
    parser.add_argument("new", type=Path)
    parser.add_argument("--store", action="store_true", help="make it the baseline of its tests")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="OLD.json",
        help="compare with this run of an older revision on this machine, not with the stored ratios",
    )
    options = parser.parse_args(arguments)
    new = read_ratios(options.new)
    old = read_ratios(options.baseline) if options.baseline else read_stored()
    rows, failed = compare(new, old)
    print(tabulate(rows, ["test", "what", "now", "baseline", "target", ""], tablefmt="github"))
    if options.store:
        kept = read_stored() | new
        BASELINE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
