"""Settings, resolved once: command line over suite over config file over environment over default.

A dataclass says what there is: its fields, with the help text in their metadata, make the options of the
command line, the keys of the config file and the names of the environment variables. A config file looks like
this; relative paths in it are relative to it:

    [run]
    device = "cuda:0"
    workers = 1

    [tasks.imagenet]
    data_dir = "/data/imagenet"

The same settings from the environment are ``BENCH_RUN_DEVICE`` and ``BENCH_IMAGENET_DATA_DIR``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import (
    Config,
    flag,
    option,
    options_of,
    resolved,
    suite_source,
    words_source,
)
from vit_ptq_bench.bench.planning.shard import Shard
from vit_ptq_bench.bench.planning.suite import (
    Suite,
    check_values,
    find_suite,
    read_suite,
    with_included,
)
from vit_ptq_bench.tasks import TaskOptions

ExecutorName = Literal["local", "serial", "slurm"]

Overwrite = Literal["never", "failed", "missing", "always"]

GB = 10**9

MOST_WORKERS, MOST_SECONDS, MOST_GB = 1024, 10**8, 10**6
"""Bounds that a slip of the finger exceeds: three years, and a petabyte."""


@dataclass(frozen=True)
class RunOptions:
    """All that `bench run` was told, from whatever place.

    Attributes:
        suites: what to run, narrowed by the command line.
        tasks: options of each task, by its name.
        output: records and leaderboard.
        overwrite: which records to make again.
        device: names of torch devices.
        workers: runs at a time; None: see `devices.default_workers`.
        executor: what carries out the runs.
        slurm: settings of jobs of Slurm.
        timeout: seconds a run may take; 0: no limit; None: see `limits.Limits`.
        share_gb: GB on disk for what runs reuse of each other.
        save_models: keep the quantized models.
        plugin: Python files that register methods or tasks.
        shard: the share of the plan to run, like ``3/16``; None: all of it.
        dead_after: seconds without a sign of life after which another sweep's runs are taken over.
        deterministic: fail runs that use an operation without a deterministic form.
    """

    output: Path | None = option(None, "records and leaderboard (default: output/SUITE)", "DIR")
    overwrite: Overwrite = option(
        "failed",
        "which records to make again: none; those not ok (default); also ok ones whose outcomes file is "
        "missing; all",
    )
    device: tuple[str, ...] = option(
        ("cpu",), "cpu (default), cuda:0, or several: cuda:0,cuda:1", "NAME"
    )
    workers: int | None = option(
        None,
        "runs at a time, which share the cores (default: one per device; of the bundled models, which "
        "compute on one thread each, one per CPU core)",
        "N",
        at_least=1,
        at_most=MOST_WORKERS,
    )
    executor: ExecutorName = option(
        "local",
        "local (default): each run in a process of its own; serial: one after the other in this process, for "
        "a debugger: without time limits, and a crash ends the sweep; slurm: array jobs",
    )
    slurm: tuple[str, ...] = option(
        (),
        "settings of jobs for --executor slurm: partition, time (minutes), gres, cpus_per_task, mem, "
        "array_parallelism, ..., as submitit has them",
        "KEY=VALUE",
    )
    timeout: float | None = option(
        None,
        "stop a run that takes longer (default: an hour, or 20 times what runs like it took where that is "
        "more, or a week while none is known; 0: no limit)",
        "SECONDS",
        at_least=0,
        at_most=MOST_SECONDS,
    )
    share_gb: float = option(
        4.0,
        "disk space for decoded images and full-precision results that runs share while the sweep lasts, "
        "under DIR (default: 4; 0: every run computes all itself)",
        "GB",
        at_least=0,
        at_most=MOST_GB,
    )
    save_models: bool = option(False, "keep the quantized models (safetensors) under DIR/models")
    plugin: tuple[Path, ...] = option(
        (), "Python file that registers methods or tasks; may be repeated", "FILE"
    )
    shard: str | None = option(
        None,
        "run the K-th of N shares of the plan only, the same on every machine, for a scheduler that starts "
        "the command N times",
        "K/N",
    )
    dead_after: float = option(
        120.0,
        "take over the runs of a sweep in DIR, on another machine, that has given no sign of life for so "
        "long (default: 120)",
        "SECONDS",
        at_least=1,
        at_most=MOST_SECONDS,
    )
    deterministic: bool = option(
        False,
        "fail a run that uses an operation of torch that has no deterministic form on its device (default: "
        "the record warns of it)",
    )
    suites: tuple[Suite, ...] = ()
    tasks: Mapping[str, TaskOptions] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the records go."""
        return self.output or Path("output") / self.suites[0].name

    @property
    def cache_bytes(self) -> int:
        """Bytes that the runs may keep on disk for each other."""
        return int(GB * self.share_gb)


@dataclass(frozen=True)
class SuiteOverrides:
    """What the command line says instead of the suite; each field replaces the suite's of ``replaces``.

    Numbers are bounded there, see `Suite`.
    """

    methods: tuple[str, ...] = option((), None, "LIST", replaces="methods")
    models: tuple[str, ...] = option((), None, "LIST", replaces="models")
    bits: tuple[str, ...] = option((), None, "LIST", replaces="bits")
    protocol: tuple[str, ...] = option((), None, "LIST", replaces="protocols")
    scope: tuple[str, ...] = option((), None, "LIST", replaces="scopes")
    seed: tuple[int, ...] = option((), None, "LIST", replaces="seeds")
    calibration_images: int | None = option(None, None, "N", replaces="calibration_images")
    calibration: tuple[str, ...] = option(
        (),
        "where calibration images come from: training, folder, psaq-vit",
        "LIST",
        replaces="calibration",
    )
    limit: int | None = option(None, "evaluate on N images only", "N", replaces="limit")


def resolve_run(words: Mapping[str, Any]) -> RunOptions:
    """Return the settings of a sweep.

    Args:
        words: what the command line says, by the names of options; None for what it does not say. Besides
            those of `RunOptions`, `SuiteOverrides` and `TaskOptions`: ``suite`` and ``config``.

    Raises:
        BenchError: an unknown suite, a value of the wrong type or out of range; its place is named. Two
            suites of one task with different options.
    """
    first = read_suite(find_suite(words["suite"]))
    return _resolved(tuple(override(suite, words) for suite in with_included(first)), words)


def resolve_suites(suites: Sequence[Suite], words: Mapping[str, Any]) -> RunOptions:
    """Return the settings of a sweep of suites made in memory; see `resolve_run`."""
    return _resolved(tuple(suites), words)


def _resolved(suites: tuple[Suite, ...], words: Mapping[str, Any]) -> RunOptions:
    config = Config.read(words.get("config"))
    settings = resolved(
        RunOptions, [config.environment("run"), config.table("run"), words_source(words)]
    )
    if settings.shard is not None:
        Shard.parse(settings.shard)  # refused before any work
    _check_executor(settings, words)
    return replace(settings, suites=suites, tasks=_tasks(suites, config, words))


def _check_executor(settings: RunOptions, words: Mapping[str, Any]) -> None:
    """Refuse words of the command line that the executor has no use for; a config file may hold them.

    Raises:
        BenchError: settings of jobs, and none are sent; several workers in one process.
    """
    if words.get("slurm") and settings.executor != "slurm":
        raise BenchError(
            f"--slurm: these are settings of jobs of Slurm, and --executor is {settings.executor}"
        )
    if words.get("workers") and settings.executor == "serial" and settings.workers != 1:
        raise BenchError(
            f"--workers {settings.workers}: --executor serial makes one run after the other"
        )


def resolve_task(name: str, words: Mapping[str, Any]) -> TaskOptions:
    """Return the options of one task outside a sweep; arguments and errors as of `resolve_run`."""
    config = Config.read(words.get("config"))
    return _task_options(name, config, [words_source(words)])


def override(suite: Suite, words: Mapping[str, Any]) -> Suite:
    """Return ``suite`` with what the command line says instead.

    Raises:
        BenchError: a value of the wrong type or out of range; the option is named.
    """
    told = resolved(SuiteOverrides, [words_source(words)])
    given: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for name, _, facts, default in options_of(SuiteOverrides):
        value = getattr(told, name)
        if value != default:
            given[facts["replaces"]] = value
            flags[facts["replaces"]] = flag(name)
    if not given:
        return suite
    changed = replace(suite, **given, overridden=flags)
    check_values(changed)
    return changed


def _tasks(
    suites: Sequence[Suite], config: Config, words: Mapping[str, Any]
) -> dict[str, TaskOptions]:
    """The options of each task of the suites; what they say of single models counts in all of them."""
    options: dict[str, TaskOptions] = {}
    weights: dict[str, dict[str, Path]] = defaultdict(dict)
    arguments: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for suite in suites:
        for name, path in suite.checkpoints.items():
            if weights[suite.task].setdefault(name, path) != path:
                raise suite.error("another suite has other weights for it", "models", name)
        for name, given in suite.model_args.items():
            if arguments[suite.task].setdefault(name, given) != given:
                raise suite.error("another suite builds it otherwise", "models", name)
        given = dict(words) | {"limit": suite.limit}
        sources = [suite_source(suite.task, suite.task_options, suite.source), words_source(given)]
        own = _task_options(suite.task, config, sources)
        if options.setdefault(suite.task, own) != own:
            raise suite.error("an included suite of the same task has other options", "include")
    return {
        task: replace(own, checkpoints=weights[task], model_args=arguments[task])
        for task, own in options.items()
    }


def _task_options(name: str, config: Config, above: Sequence[Any]) -> TaskOptions:
    places = [config.environment(name), config.table("tasks", name), *above]
    return resolved(TaskOptions, places)
