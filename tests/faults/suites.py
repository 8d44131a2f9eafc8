"""Mutated suites, config files, variables of the environment and words of the command line.

A plan that comes of them is held against a reading of the same file by TOML's rules alone.
"""

from __future__ import annotations

import os
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.faults.command import bench
from tests.faults.mutations import NUMBERS, TEXTS, mutate_file
from tests.faults.trials import Kind, Outcome, faulty
from vit_ptq_bench.bench.planning.overwrite import decisions_of
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.settings import RunOptions, resolve_run
from vit_ptq_bench.bench.planning.suite import KEYS, SUITES_FOLDER

OWN = """\
name = "own"
description = "everything that a suite may hold"
task = "fashion"
models = ["vit_mini", "deit_*"]
methods = ["minmax", "percentile", "mgrq"]
bits = ["W6A6", "W4A4"]
protocols = ["equal", "authors"]
seeds = [0, 1, 2]
calibration_images = 16
limit = 200

[parameters.percentile]
fraction = 0.995

[variants.mgrq.plain]
iterations = 10

[variants.mgrq."+more"]
iterations = 20

[task_options]
holdout = true
"""

CONFIG = """\
[run]
output = "out"
overwrite = "failed"
device = ["cpu"]
workers = 2
timeout = 600.0
share_gb = 1.5
save_models = false

[tasks.fashion]
batch_size = 50
loader_workers = 0
limit = 100

[tasks.imagenet]
data_dir = "images"
"""

SMALL = 'task = "fashion"\nmodels = ["vit_mini"]\nmethods = ["minmax"]\nbits = ["W4A4"]\n'

BIT_WIDTH = re.compile(r"[Ww](\d+)[Aa](\d+)")

MOST = {
    "workers": 10_000,
    "timeout": 1e10,
    "share_gb": 1e12,
    "batch_size": 1e9,
    "loader_workers": 1e5,
}
"""Numbers beyond which nothing on any machine can be meant."""


def prepare(folder: Path) -> list[str]:
    """The suites to mutate; the trials run in ``folder``, the current one."""
    for name in [name for name in os.environ if name.startswith("BENCH_")]:
        del os.environ[name]
    suites = bundled()
    for text in (*suites, SMALL, OWN):  # a mutation of what is refused as it is would prove nothing
        Path("own.toml").write_text(text)
        Path("config.toml").write_text(CONFIG)
        told = [] if text in suites else ["--config", "config.toml"]
        said = bench(["run", "own.toml", "--dry-run", "--output", "records", *told])
        assert said.status == 0, said.error
    return [OWN] * 2 * len(suites) + suites


def bundled() -> list[str]:
    """The bundled suites of the tasks that need no data of the user's own."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(SUITES_FOLDER.glob("*.toml"))]
    return [
        text for text in texts if not re.search('^task = "(imagenet|coco)"', text, re.MULTILINE)
    ]


def trial(suites: list[str], number: int, rng: random.Random) -> Outcome:
    """One mutation of one of the four places, and what planning makes of it."""
    place = rng.choices((_suite, _config, _environment, _words), (6, 2, 1, 1))[0]
    return place(suites, rng)


def _suite(suites: list[str], rng: random.Random) -> Outcome:
    data, what = mutate_file(rng.choice(suites), rng)
    Path("own.toml").write_bytes(data)
    with faulty(f"suite: {what}"):
        return _judged({}, [], f"suite: {what}")


def _config(suites: list[str], rng: random.Random) -> Outcome:
    Path("own.toml").write_text(SMALL)
    data, what = mutate_file(CONFIG, rng)
    Path("config.toml").write_bytes(data)
    with faulty(f"bench.toml: {what}"):
        return _judged({"config": Path("config.toml")}, ["--config", "config.toml"], what)


def _environment(suites: list[str], rng: random.Random) -> Outcome:
    Path("own.toml").write_text(SMALL)
    names = ("RUN_WORKERS", "RUN_TIMEOUT", "RUN_SHARE_GB", "RUN_DEVICE", "RUN_OVERWRITE", "RUN_OUTPUT",
             "DIGITS_BATCH_SIZE", "DIGITS_LIMIT", "DIGITS_HOLDOUT", "RUN_SAVE_MODELS")  # fmt: skip
    name, value = f"BENCH_{rng.choice(names)}", rng.choice((*NUMBERS, *TEXTS)).replace("\0", "")
    os.environ[name] = value
    try:
        with faulty(f"{name}={value[:60]!r}"):
            return _judged({}, [], f"{name}={value[:60]!r}")
    finally:
        del os.environ[name]


def _words(suites: list[str], rng: random.Random) -> Outcome:
    Path("own.toml").write_text(OWN)
    flags = ("workers", "timeout", "share_gb", "limit", "seed", "bits", "methods", "models", "protocol",
             "calibration_images", "batch_size", "overwrite", "device")  # fmt: skip
    name, value = rng.choice(flags), rng.choice((*NUMBERS, *TEXTS))
    flag = f"--{name.replace('_', '-')}={value}"
    with faulty(flag[:80]):
        said = bench(["run", "own.toml", "--dry-run", flag])
        if said.status == 2 and said.error.strip():
            return Outcome("refused", said.error)
        if said.status == 0 and _is_plain(name, value):
            return Outcome("right")
        return Outcome("silent", f"{flag[:80]}: status {said.status}, {said.out[-200:]}")


def _is_plain(name: str, value: str) -> bool:
    """Whether a word of the command line can mean something."""
    if name in MOST:
        return _is_bounded(name, value)
    if name in ("limit", "seed", "calibration_images"):
        return re.fullmatch(r"\+?[0-9_]+", value) is not None
    return True


def _is_bounded(name: str, value: str) -> bool:
    try:
        return 0 <= float(value) <= MOST[name]
    except ValueError:
        return False


def _judged(words: Mapping[str, Any], more: list[str], what: str) -> Outcome:
    said = bench(["run", "own.toml", "--dry-run", "--output", "records", *more])
    if said.status == 2:
        sentence = said.error.removeprefix("error: ").strip()
        verdict = "refused" if sentence and "Traceback" not in said.error else "traceback"
        return Outcome(verdict, f"{what}: {sentence}")
    if said.status != 0:
        return Outcome("traceback", f"{what}: exit status {said.status}: {said.error}")
    options = resolve_run({"suite": "own.toml", "output": Path("records"), **words})
    runs = [decision.run for decision in decisions_of(options)]
    wrong = [*_wrong_runs(runs, options), *_wrong_options(options, words)]
    return Outcome("silent", f"{what}: {'; '.join(wrong)}"[:600]) if wrong else Outcome("right")


def _wrong_runs(runs: list[Run], options: RunOptions) -> Iterator[str]:
    """Where the plan is not what the file says."""
    said = parsed(Path("own.toml"))
    if unknown := set(said) - set(KEYS):
        yield f"unknown keys {sorted(unknown)} pass"
    if len({run.run_id for run in runs}) != len(runs):
        yield "two runs have one id"
    if said.get("include"):
        return  # the others' runs are among these
    own = [run.spec for run in runs if run.reference is not None]
    expected = {
        "seeds": (_items(said, "seeds", [0]), {spec.seed for spec in own}),
        "bits": (
            _bits(_items(said, "bits", ["W6A6", "W4A4", "W3A3"])),
            {spec.bits for spec in own},
        ),
        "protocols": (_items(said, "protocols", ["equal"]), {spec.protocol for spec in own}),
        "limit": (
            {said.get("limit", options.tasks[said["task"]].limit)},
            {run.spec.task.limit for run in runs},
        ),
        "task": ({said.get("task")}, {run.spec.task.name for run in runs}),
    }
    if own:
        for key, (wanted, found) in expected.items():
            if wanted != found or any(isinstance(value, bool) for value in wanted):
                yield f"{key}: the file says {wanted}, the plan {found}"
    yield from _wrong_names(said, runs)
    yield from _wrong_settings(said, own)


def parsed(path: Path) -> dict[str, Any]:
    """A TOML file, which some editors begin with a byte order mark."""
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))


def _wrong_names(said: Mapping[str, Any], runs: list[Run]) -> Iterator[str]:
    for key, found in (
        ("models", {run.spec.model.name for run in runs}),
        ("methods", {run.spec.method.name for run in runs}),
    ):
        wanted = _items(said, key, ["*"])
        for name in wanted:
            if not any(fnmatchcase(other, name) for other in found):
                yield f"{key}: nothing of {name!r} is planned"
        for name in found - {"fp32"}:
            if not any(fnmatchcase(name, pattern) for pattern in wanted):
                yield f"{key}: nobody asked for {name!r}"


def _wrong_settings(said: Mapping[str, Any], specs: list[Any]) -> Iterator[str]:
    images = said.get("calibration_images")
    for spec in specs:
        if images is not None and spec.calibration.images not in (images, 0):
            yield f"{spec.calibration.images} calibration images, the file says {images}"
        variants = said.get("variants", {}).get(spec.method.name, {})
        overridden = {key for variant in variants.values() for key in variant}
        for key, value in said.get("parameters", {}).get(spec.method.name, {}).items():
            used = spec.method.parameters.get(key)
            if key not in overridden and (
                used != value or isinstance(used, bool) != isinstance(value, bool)
            ):
                yield f"parameters.{spec.method.name}.{key} is {used!r}, the file says {value!r}"


def _items(said: Mapping[str, Any], key: str, default: list[Any]) -> set[Any]:
    value = said.get(key, default)
    return set(value if isinstance(value, list) else [value])


def _bits(texts: set[str]) -> set[str]:
    found = {text: BIT_WIDTH.fullmatch(text.strip()) for text in texts}
    return {f"W{int(m[1])}A{int(m[2])}" if m else text for text, m in found.items()}


def _wrong_options(options: RunOptions, words: Mapping[str, Any]) -> Iterator[str]:
    """Numbers of the options without bounds, or other ones than the config file says."""
    fashion = options.tasks.get("fashion")
    for name, most in MOST.items():
        value = getattr(options if hasattr(options, name) else fashion, name, None)
        if value is not None and not 0 <= value <= most:
            yield f"{name} = {value:g} passes"
    if "config" not in words:
        return
    said = parsed(words["config"])
    for values, used in (
        (said.get("run", {}), options),
        (said.get("tasks", {}).get("fashion", {}), fashion),
    ):
        for key, value in values.items():
            taken = getattr(used, key, None)
            number = isinstance(value, int | float)
            if number and (taken != value or isinstance(value, bool) != isinstance(taken, bool)):
                yield f"{key} is {taken!r}, the config says {value!r}"


KINDS = [
    Kind("suites", "mutated suites and settings become a plan or a sentence", 2500, prepare, trial)
]
