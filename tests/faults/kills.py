"""Signals at random moments to a sweep's process, its runs' processes and its fork server.

A story is one output folder: the same command is given again and again, each time with signals, until its
share of them is spent; then once undisturbed. A record that was there stays as it is to the bit, every run
has one record in the end, with the figures of an undisturbed sweep, and nothing else is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.faults.sweeps import (
    DIGITS,
    MARK,
    SECONDS,
    TOYS,
    printed_file,
    record_files,
    result,
    start,
)
from tests.faults.trials import Kind, Outcome, Row
from vit_ptq_bench.bench.sharing.claims import SHARED

KILLS = 200

PER_STORY = 15

SUITES = (TOYS, TOYS, DIGITS)
"""One suite per story, in turn."""

STORIES_AT_A_TIME = 2

SETTLE = 30.0
"""Seconds in which what a killed process has started must be gone."""

TARGETS = {
    "sweep": (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT),
    "run": (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV),
    "fork server": (signal.SIGKILL,),
}

WEIGHTS = (5, 5, 2)

ASKED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that a sweep answers itself."""

STARTING = 1.0
"""Seconds of CPU time within which a process may not yet answer signals: Python and the command line load."""

LEFT = {"leaderboard.md", "leaderboard.csv", "index.html"}
"""Files of an output folder beside its records."""


KEPT = (f"bench-{os.getuid()}-", "torchinductor_")
"""Folders in the temporary one that are meant to stay: this project's for later processes, and torch's."""


@dataclass(frozen=True)
class Sent:
    """A signal to a sweep's own process.

    Attributes:
        number: the signal.
        answered: whether the process answered it then, and did not leave it to the system.
        starting: whether it had only just begun.
        at: time, in seconds since the epoch.
    """

    number: signal.Signals
    answered: bool
    starting: bool
    at: float


@dataclass
class Story:
    """One output folder and what was seen in it.

    Attributes:
        output: the folder.
        suite: what is run into it.
        expected: the undisturbed results by run id.
        rng: all chance but the machine's.
        ok: bytes of every finished record seen, by run id.
        bad: what went wrong.
        kills: signals sent so far.
    """

    output: Path
    suite: Path
    expected: dict[str, Any]
    rng: random.Random
    ok: dict[str, bytes] = field(default_factory=dict)
    bad: list[Outcome] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return str(self.output)

    def blame(self, verdict: str, text: str) -> None:
        self.bad.append(Outcome(verdict, f"after {', '.join(self.kills[-3:])}: {text}"))

    def run(self, kills: int) -> None:
        """The command, again and again, until ``kills`` signals are sent; then undisturbed."""
        while len(self.kills) < kills:
            self._disturbed(kills)
            self._look()
        process = start(self.suite, self.output, *self._workers(), mark=self.mark)
        status = self._end(process)
        if status != 0:
            self.blame(
                "traceback", f"the undisturbed command ends with {status}: {self._printed()[-400:]}"
            )
        self._look()
        self._look_at_the_end()

    def _workers(self) -> tuple[str, ...]:
        return ("--workers", self.rng.choice("122"))

    def _disturbed(self, kills: int) -> None:
        process = start(self.suite, self.output, *self._workers(), mark=self.mark)
        sent = None
        while sent is None and len(self.kills) < kills:
            self._wait(process, self.rng.uniform(0, self.rng.choice((0.5, 2.0, 5.0))))
            if process.poll() is not None:
                break
            target = self.rng.choices(list(TARGETS), WEIGHTS)[0]
            number = self.rng.choice(TARGETS[target])
            state = Sent(number, *answers(process.pid), time.time())
            if self._send(process, target, number) and target == "sweep":
                sent = state
        self._check_end(sent, self._end(process))

    def _wait(self, process: subprocess.Popen[str], seconds: float) -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def _send(self, process: subprocess.Popen[str], target: str, number: signal.Signals) -> bool:
        """Whether the signal reached a process of that kind."""
        pids = [process.pid] if target == "sweep" else processes(self.mark, process.pid)[target]
        if not pids:
            return False
        group = target == "sweep" and number in ASKED and self.rng.random() < 0.5
        try:
            if group:  # as a terminal and timeout(1) do
                os.killpg(process.pid, number)
            else:
                os.kill(self.rng.choice(pids), number)
        except ProcessLookupError:
            return False
        self.kills.append(f"{number.name} to the {target}{' and its group' if group else ''}")
        return True

    def _end(self, process: subprocess.Popen[str]) -> int:
        """Wait for the sweep and all that it has started; its exit status."""
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.blame("hung", f"the sweep did not end: {self._printed()[-400:]}")
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        end = time.monotonic() + SETTLE
        while (left := marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            self.blame("hung", f"processes are left: {[_command(pid) for pid in left]}")
            for pid in left:
                _kill(pid)
        return status

    def _check_end(self, sent: Sent | None, status: int) -> None:
        """Whether the sweep ended as it has to after that signal."""
        printed, board = self._printed(), self.output / "leaderboard.md"
        expected: set[int] = {0, 1}
        if sent is not None:
            expected |= {-signal.SIGKILL} if sent.number == signal.SIGKILL else {130}
            # All is done when nothing but its end is left to print.
            done = board.is_file() and board.stat().st_mtime > sent.at - SETTLE
            if not sent.answered and (sent.starting or done):
                expected.add(-sent.number)
        if status not in expected:
            self.blame("traceback", f"exit status {status}: {printed[-600:]}")
        elif "Traceback" in printed and (sent is None or not sent.starting):
            self.blame("traceback", printed[-600:])
        there = any(record_files(self.output))
        if there and "the finished runs are kept" in printed and not board.is_file():
            self.blame("lost", "there are records and no leaderboard of them")

    def _printed(self) -> str:
        return printed_file(self.output).read_text(encoding="utf-8", errors="replace")

    def _look(self) -> None:
        """Every record on disk is whole; one that was finished is as it was."""
        files = record_files(self.output)
        for run, data in self.ok.items():
            if run not in files:
                self.blame("lost", f"the record of {run} is gone")
            elif files[run].read_bytes() != data:
                self.blame("doubled", f"the finished run {run} was made again")
        for name, path in files.items():
            try:
                record = json.loads(path.read_bytes())
            except ValueError as error:
                self.blame("lost", f"{path.name} is no whole record: {error}")
                continue
            if name not in self.expected:
                if record["status"] == "ok":
                    self.blame("doubled", f"{path.name} is no run of the suite")
                continue
            if record["status"] == "ok":
                self.ok[name] = path.read_bytes()
                if result(record) != self.expected[name]:
                    self.blame("silent", f"{path.name} has other figures than undisturbed")

    def _look_at_the_end(self) -> None:
        for run in self.expected.keys() - self.ok.keys():
            self.blame("lost", f"no finished record of {run}")
        for path in self._leftovers():
            self.blame("hung", f"left behind: {path}")

    def _leftovers(self) -> Iterator[Path]:
        names = {f"{run}.json" for run in self.expected}
        for path in self.output.rglob("*"):
            own = path.relative_to(self.output)
            known = path.is_dir() and own.name != ".cache"
            known |= own.parts[0] == "runs" and path.name.removesuffix(".npz") + ".json" in names
            known |= own.parts[0] == "runs" and path.name in names
            known |= own.parts[0] == SHARED and len(own.parts) == 2  # reports and events, no claims
            if not known and str(own) not in LEFT:
                yield own
        for path in (self.output.parent / "tmp").iterdir():
            if not path.name.startswith(KEPT):
                yield path


def marked(mark: str) -> dict[int, str]:
    """Command line of every process that has inherited ``mark``, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}  # others have ended


def processes(mark: str, sweep: int) -> dict[str, list[int]]:
    """The processes of a sweep by what they are."""
    found: dict[str, list[int]] = {"fork server": [], "run": []}
    there = marked(mark)
    servers = [pid for pid in there if _parent(pid) == sweep and "forkserver" in there[pid]]
    for pid in there:
        if pid in servers:
            found["fork server"].append(pid)
        elif _parent(pid) in servers:
            found["run"].append(pid)
    return found


def answers(pid: int) -> tuple[bool, bool]:
    """Whether a process answers SIGTERM itself now, and whether it has only just begun."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return False, False
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return bool(caught >> (signal.SIGTERM - 1) & 1), seconds < STARTING


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:100]
    except OSError:
        return f"{pid}, gone by now"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def undisturbed(suite: Path, output: Path) -> dict[str, Any]:
    """The results of the suite by run id, from a sweep that nobody disturbs."""
    status = start(suite, output, "--workers", "2").wait(SECONDS)
    assert status == 0, printed_file(output).read_text()
    return {
        run: result(json.loads(path.read_bytes())) for run, path in record_files(output).items()
    }


def run_stories(
    folder: Path,
    kills: int,
    seed: int,
    suites: Sequence[str] = SUITES,
    name: str = "kills",
    job: type[Job] | None = None,
) -> Row:
    """Send ``kills`` signals, story by story; every signal is a trial."""
    row, began = Row(name), time.monotonic()
    jobs: list[Job] = []
    kind = job or Job
    while sum(one.kills for one in jobs) < kills:
        number = len(jobs)
        left = kills - sum(one.kills for one in jobs)
        jobs.append(kind(folder / f"story-{number}", number, min(PER_STORY, left), seed))
    known = {text: _expected(folder / f"suite-{n}", text) for n, text in enumerate(set(suites))}
    expected = [(text, known[text]) for text in suites]
    with ThreadPoolExecutor(min(STORIES_AT_A_TIME, os.cpu_count() or 1)) as pool:
        for one, story in zip(jobs, pool.map(lambda one: one.tell(expected), jobs), strict=True):
            _count(row, story, one.number)
    row.seconds = time.monotonic() - began
    return row


@dataclass(frozen=True)
class Job:
    """A story to tell: its folder, its number, how many signals, and the seed of all stories."""

    folder: Path
    number: int
    kills: int
    seed: int

    story: ClassVar[type[Story]] = Story

    def tell(self, expected: Sequence[tuple[str, dict[str, Any]]]) -> Story:
        """Carry it out with the suite whose turn it is."""
        text, results = expected[self.number % len(expected)]
        self.folder.mkdir(parents=True)
        suite = self.folder / "suite.toml"
        suite.write_text(text)
        rng = random.Random(f"{self.seed}/kills/{self.number}")
        story = self.story(self.folder / "output", suite, results, rng)
        story.run(self.kills)
        return story


def _expected(folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "suite.toml").write_text(text)
    return undisturbed(folder / "suite.toml", folder / "output")


def _count(row: Row, story: Story, number: int) -> None:
    """A story's signals are its trials; what went wrong is counted in the place of as many of them."""
    for outcome in story.bad:
        row.add(number, outcome)
    for _ in range(max(0, len(story.kills) - len(story.bad))):
        row.add(number, Outcome("right"))


KINDS = [
    Kind(
        "kills",
        "signals to a sweep, its runs and its fork server at random moments",
        KILLS,
        run=run_stories,
    )
]
