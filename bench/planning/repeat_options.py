"""The options of `bench repeat`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.bench.planning.options import option


@dataclass(frozen=True)
class RepeatOptions:
    """Which records of a folder are made again, where no single one is named.

    Attributes:
        sample: how many; None: the one that is named.
        sample_seed: which ones.
    """

    sample: int | None = option(
        None,
        "in place of RUN: so many records of the folder, drawn at random; begun again, the command goes on",
        "N",
        at_least=1,
        at_most=100_000,
    )
    sample_seed: int = option(0, "another number draws other records", "SEED", at_least=0)
