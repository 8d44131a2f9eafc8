"""Hours, memory and disk that a dry run tells beside the plan."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ptq_bench.bench.cli.options import RESULTS
from vit_ptq_bench.bench.cli.text import hours
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.settings import GB, RunOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.execution.devices import Slot
    from vit_ptq_bench.bench.planning.plan import Run
    from vit_ptq_bench.bench.records.record import Record
    from vit_ptq_bench.bench.simulation.expectation import Model

MB_OF_GB = 1000

MEASURED = "measured here just now"
OF_RECORDS = "as on the machines of the records; --probe measures this one"


def print_expectation(options: RunOptions, runs: Sequence[Run], probe: bool) -> None:
    """Print what the runs that are due would take.

    Args:
        options: of the sweep.
        runs: at least one.
        probe: whether to measure the models on this machine, and not take the speed that records tell.

    Raises:
        BenchError, TaskError: a model cannot be probed.
    """
    from vit_ptq_bench.bench.execution.devices import slots_of

    slots = slots_of(options)
    records = _records(options.folder, {run.spec.task.name for run in runs})
    probed = _probed(options, runs, slots[0]) if probe else {}
    if probed:
        print(_speeds({model: 1 / speed for model, speed in probed.items()}, MEASURED))
    for sentence in (
        *_hours(options, runs, slots, records, probed),
        *_memory(options, runs, slots, records),
        *_disk(options, runs, records),
    ):
        print(sentence)


def _records(folder: Path, tasks: Collection[str]) -> list[Record]:
    """Finished records of the sweep's own folder and of the project's results, where they are at hand.

    Those of the sweep's tasks are enough; where there are none, those of others tell methods' costs.
    """
    from vit_ptq_bench.bench.records.store import Store, folders_of_records

    stores = [Store(one) for one in dict.fromkeys([*folders_of_records(RESULTS), folder])]
    found = [record for store in stores for record in store.records(tasks) if record.ok]
    return found or [record for store in stores for record in store.records() if record.ok]


def _hours(
    options: RunOptions,
    runs: Sequence[Run],
    slots: Sequence[Slot],
    records: Sequence[Record],
    probed: Mapping[Model, float],
) -> list[str]:
    from vit_ptq_bench.bench.simulation.expectation import expected_hours

    at_a_time = min(len(slots), len(runs))
    try:
        found = expected_hours(runs, options.tasks, records, at_a_time, probed)
    except BenchError as error:
        return [f"how long it takes is not known: {error} ({_searched(options)})"]
    longest, seconds = found.longest
    together = f", {hours(found.elapsed / 3600)} with {at_a_time} at a time" * (at_a_time > 1)
    sentences = [
        f"about {hours(found.work / 3600)} of work{together}; the longest run, {longest.label}, "
        f"takes {hours(seconds / 3600)}",
    ]
    if not probed:
        speeds = {model: speed.seconds for model, speed in found.speeds.items()}
        sentences.append(_speeds(speeds, OF_RECORDS))
    if found.usual:
        sentences.append(
            "what methods cost beside full precision, with their usual settings, is what the package brings "
            "along, from the project's own records: no record of a method with full precision beside it is "
            f"at hand ({_searched(options)})"
        )
    if found.guessed:
        which = "what the package brings has not" if found.usual else "no record has"
        sentences.append(
            f"{which} the method, or its settings, of {found.guessed} of {len(runs)} runs: their "
            "cost is that of the method's other runs, or the median of all"
        )
    return sentences


def _probed(options: RunOptions, runs: Sequence[Run], slot: Slot) -> dict[Model, float]:
    from vit_ptq_bench.bench.planning.registry import is_small
    from vit_ptq_bench.bench.simulation.expectation import probed_speed

    models = dict.fromkeys((run.spec.task.name, run.spec.model.name) for run in runs)
    return dict(
        probed_speed(
            task, model, options.tasks[task], slot.device, 1 if is_small(task) else slot.threads
        )
        for task, model in models
    )


def _speeds(seconds: Mapping[Model, float], where: str) -> str:
    told = ", ".join(f"{model} {1 / one:.3g}" for (_, model), one in sorted(seconds.items()))
    return f"images/s in full precision: {told} ({where})"


def _searched(options: RunOptions) -> str:
    return f"looked for in {RESULTS.absolute()} and in --output {options.folder}"


def _memory(
    options: RunOptions, runs: Sequence[Run], slots: Sequence[Slot], records: Sequence[Record]
) -> list[str]:
    from vit_ptq_bench.bench.execution.room import free_mb
    from vit_ptq_bench.bench.simulation.expectation import expected_peak, usual_peak

    device = slots[0].device
    kind = device.partition(":")[0]
    alike = [one for one in records if str(one.environment.get("device")).startswith(kind)]
    own = expected_peak(runs, alike)
    peak = own or usual_peak(runs, kind)
    if peak is None:
        nothing = f"memory: not known, no record on {kind} is of a run like these"
        return [f"{nothing} ({_searched(options)})"]
    run, most = peak
    beside = min(len(runs), sum(slot.device == device for slot in slots))
    free = free_mb(device)
    whose = "" if own else " as in the project's own records"
    sentence = (
        f"memory: up to {most / MB_OF_GB:.1f} GB a run ({run.label}){whose}, {beside} at a time"
    )
    if free is None:
        return [sentence]
    sentence += f"; {free / MB_OF_GB:.1f} GB are free on {device}"
    if most > free:
        fewer = "ask for fewer --calibration-images, or take another machine"
        return [f"{sentence}: too little for this run; {fewer}"]
    if beside * most > free:
        return [f"{sentence}: too little for {beside}, so that runs wait for each other"]
    return [sentence]


def _disk(options: RunOptions, runs: Sequence[Run], records: Sequence[Record]) -> list[str]:
    """The folder may not be there yet: the disk is that of the first folder above it that is."""
    there = next(
        path
        for path in (options.folder.absolute(), *options.folder.absolute().parents)
        if path.exists()
    )
    free = shutil.disk_usage(there).free / GB
    needed, models, less = options.share_gb, "", "say less with --share-gb"
    if options.save_models:
        from vit_ptq_bench.bench.simulation.saved_sizes import saved_mb

        kept, unknown = saved_mb(runs, options.tasks, records)
        needed += kept / MB_OF_GB
        models = f", and {kept / MB_OF_GB:.2g} GB of saved models (--save-models"
        models += f"; of {unknown} of {len(runs)} not known)" if unknown else ")"
        less += ", leave out --save-models"
    up_to = f"disk: up to {options.share_gb:g} GB while it runs (--share-gb)"
    sentence = f"{up_to}{models}; {free:.1f} GB are free"
    if needed > free:
        return [f"{sentence}: too little, {less}, or another --output"]
    return [sentence]
