"""SIGKILL at random moments to any process of several sweeps that work in one folder.

Two or three sweeps run at a time, of whole plans or of halves, with processes of their own or in one. Each
that ends is followed by another, until the kills are spent; then those that live come to their end, and one
more is given undisturbed. What is looked at is what `kills` looks at.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.faults.kills import SETTLE, SUITES, Job, Story, marked, run_stories
from tests.faults.sweeps import SECONDS, start
from tests.faults.trials import Kind, Row

KILLS = 100

WAYS = (
    ("--workers", "1"),
    ("--workers", "2"),
    ("--executor", "serial"),
    ("--workers", "1", "--shard", "1/2"),
    ("--workers", "1", "--shard", "2/2"),
)
"""How a sweep takes part."""

TARGETS = ("sweep", "run", "fork server")

WEIGHTS = (5, 5, 2)


@dataclass
class Fellow:
    """One of the sweeps in a folder.

    Attributes:
        process: of the sweep itself.
        printed: file of what it prints.
        killed: whether it was sent SIGKILL.
    """

    process: subprocess.Popen[str]
    printed: Path
    killed: bool = False


@dataclass
class Company(Story):
    """A folder in which several sweeps work.

    Attributes:
        fellows: those that have not ended, as far as it is known.
        numbers: of the files that they print into.
    """

    fellows: list[Fellow] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def _disturbed(self, kills: int) -> None:
        """Send kills until they are spent, while others come; then wait for those that live."""
        size = self.rng.choice((2, 3))
        while len(self.kills) < kills:
            while len(self.fellows) < size:
                self.fellows.append(self._join())
            time.sleep(self.rng.uniform(0, self.rng.choice((0.5, 2.0, 5.0))))
            self._kill_one()
            self._part()
            self._look()
        for fellow in self.fellows:
            try:
                fellow.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.blame("hung", f"a sweep did not end: {self._told(fellow)[-400:]}")
                fellow.process.kill()
                fellow.process.wait()
        self._part()
        self._settle()

    def _join(self) -> Fellow:
        printed = self.output.with_name(f"sweep-{next(self.numbers)}.txt")
        words = self.rng.choice(WAYS)
        return Fellow(
            start(self.suite, self.output, *words, mark=self.mark, printed=printed), printed
        )

    def _kill_one(self) -> None:
        fellow = self.rng.choice(self.fellows)
        if fellow.process.poll() is not None:
            return
        target = self.rng.choices(TARGETS, WEIGHTS)[0]
        if target == "sweep":
            fellow.killed = True
            fellow.process.kill()
            self.kills.append("SIGKILL to a sweep")
        else:
            self._send(fellow.process, target, signal.SIGKILL)

    def _part(self) -> None:
        """Look at how those have ended that have."""
        for fellow in self.fellows:
            status = fellow.process.poll()
            if status is None:
                continue
            expected = {0, 1, -signal.SIGKILL} if fellow.killed else {0, 1}
            printed = self._told(fellow)
            if status not in expected or "Traceback" in printed:
                self.blame("traceback", f"exit status {status}: {printed[-600:]}")
        self.fellows = [fellow for fellow in self.fellows if fellow.process.poll() is None]

    def _settle(self) -> None:
        """What the killed have started ends by itself."""
        end = time.monotonic() + SETTLE
        while (left := marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            self.blame("hung", f"processes are left: {list(left.values())}")

    @staticmethod
    def _told(fellow: Fellow) -> str:
        return fellow.printed.read_text(encoding="utf-8", errors="replace")


class CompanyJob(Job):
    """The story of several sweeps in one folder."""

    story = Company


def run_companies(folder: Path, kills: int, seed: int, suites: Sequence[str] = SUITES) -> Row:
    """Send ``kills`` times SIGKILL, story by story; each is a trial."""
    return run_stories(folder, kills, seed, suites, name="company", job=CompanyJob)


KINDS = [
    Kind(
        "company",
        "SIGKILL to processes of several sweeps in one folder at random moments",
        KILLS,
        run=run_companies,
    )
]
