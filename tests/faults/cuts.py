"""A record, its outcomes and the header of its saved model, cut at every byte."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults.flips import Results, evaluate, judge_results, read_results
from tests.faults.sweeps import finished_sweep
from tests.faults.trials import Kind, Outcome, faulty

HEADER = 300
"""Bytes of a saved model, and of its end, at which it is cut."""


@dataclass(frozen=True)
class Cuts:
    """The results, and where to cut: (file, bytes that are left)."""

    results: Results
    places: list[tuple[Path, int]]


def prepare(folder: Path) -> Cuts:
    """Two records of a finished sweep, and one of the models."""
    source, target = finished_sweep(folder.parent / "sweep"), folder / "results"
    records = sorted(source.glob("runs/*/*/*.json"))[:2]
    model = next(iter(sorted(source.glob(f"models/*/*/{records[0].stem}.safetensors"))))
    for path in (*records, *(path.with_suffix(".npz") for path in records), model):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    results = read_results(target, f"runs/*/*/{records[0].stem}.*")
    model = target / model.relative_to(source)
    size = model.stat().st_size
    places = [(path, n) for path in results.files for n in range(path.stat().st_size)]
    places += [(model, n) for n in (*range(HEADER), *range(size - HEADER, size))]
    return Cuts(results, places)


def trial(cuts: Cuts, number: int, rng: random.Random) -> Outcome:
    """Cut one file at one byte."""
    path, left = cuts.places[number]
    fault = f"{path.name} cut at byte {left}"
    whole = path.read_bytes()
    if path.suffix != ".safetensors":
        outcome = judge_results(cuts.results, path, whole[:left], fault)
        harmless = path.suffix == ".json" and left == len(whole) - 1  # the line end
        noticed = outcome.verdict != "right" or harmless
        return outcome if noticed else Outcome("silent", f"{fault}: the check passes")
    path.write_bytes(whole[:left])
    try:
        with faulty(fault):
            said = evaluate(path)
    finally:
        path.write_bytes(whole)
    good = said.status != 0 and said.error.strip()
    return Outcome("refused" if good else "silent", f"{fault}: {said.out}{said.error}")


KINDS = [
    Kind(
        "cuts",
        "a record and its outcomes cut at every byte, and the saved model at its ends",
        None,
        prepare,
        trial,
        lambda cuts: range(len(cuts.places)),
    )
]
