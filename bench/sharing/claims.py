"""Claims: one process works on a run of a folder, however many machines share it.

A claim is a file that only one process can make (a hard link, which network file systems make in one step
too), touched while its owner lives. No lock of the operating system is needed. Ages are differences of two
times that the file server has given, so that clocks of machines may be wrong. The claim of a process that is
known to have ended, or that has given no sign for long, can be taken over; where its owner was only stopped
and both finish the run, the records are the same, or the store tells that they are not.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.records.files import write_atomically, write_new, written_aside
from vit_ptq_bench.bench.sharing.place import Place, here

SHARED = ".sweeps"
"""The folder, in the output, of all that sweeps tell each other."""

CLAIMS = "claims"

SIGNS = 8
"""Signs of life within the time after which a process counts as dead."""


@dataclass(frozen=True)
class Claim:
    """A run on which somebody works.

    Attributes:
        run_id: the run.
        place: who.
        facts: what the owner says of it, for people.
        age: seconds since its owner's last sign of life.
    """

    run_id: str
    place: Place
    facts: Mapping[str, Any]
    age: float

    def is_dead(self, after: float) -> bool:
        """Whether it can be taken over: its owner has ended, or was silent for ``after`` seconds."""
        return self.age > after or self.place.has_ended()


class Claims:
    """The claims in a folder, as one process sees them.

    Args:
        folder: of the records; it can be written.
        dead_after: seconds of silence after which a process counts as dead.
    """

    def __init__(self, folder: Path, dead_after: float) -> None:
        self._folder = folder / SHARED / CLAIMS
        self._dead_after = dead_after
        self._own: dict[str, bytes] = {}
        self._guard = threading.Lock()

    def take(self, run_id: str, facts: Mapping[str, Any]) -> bool:
        """Claim a run; False: somebody else works on it.

        Raises:
            OSError: the folder cannot be written.
        """
        path, content = self._path(run_id), _content(run_id, facts)
        self._folder.mkdir(parents=True, exist_ok=True)  # anew, if somebody has removed it
        if not write_new(path, content) and not self._taken_over(path, content):
            return False
        with self._guard:
            self._own[run_id] = content
        return True

    def content(self, run_id: str) -> bytes:
        """Return what tells our claim of a run from any other; empty if it is not ours."""
        with self._guard:
            return self._own.get(run_id, b"")

    def inherit(self, run_id: str, claim: bytes, facts: Mapping[str, Any]) -> bool:
        """Take a run over from a process that has given its ``claim`` to us, or from an earlier self.

        The earlier self is the same job of a scheduler, which has been started again elsewhere.

        Args:
            run_id: the run.
            claim: from `content` of the giver.
            facts: as of `take`; ``slurm_job`` tells the job.

        Returns:
            Whether the run is ours; False: the giver has lost it to somebody else.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(run_id)
        before = _bytes_of(path)
        found = None if before is None else read_claim(path, self.now())
        job = facts.get("slurm_job")
        again = found is not None and bool(job) and found.facts.get("slurm_job") == job
        if before != claim and not again:
            return self.take(run_id, facts)
        content = _content(run_id, facts)
        write_atomically(path, content)
        with self._guard:
            self._own[run_id] = content
        return True

    def release(self, run_id: str) -> None:
        """Give up a claim, unless another process has taken it over."""
        with self._guard:
            content = self._own.pop(run_id, None)
        path = self._path(run_id)
        if content is not None and _bytes_of(path) == content:
            path.unlink(missing_ok=True)

    def others(self) -> dict[str, Claim]:
        """Return the claims of other processes that live, by their runs."""
        now, found = self.now(), {}
        for path in sorted(self._folder.glob("*.json")):
            claim = read_claim(path, now)
            if claim is None or path.stem in self._own or claim.is_dead(self._dead_after):
                continue
            found[claim.run_id] = claim
        return found

    @contextmanager
    def kept_alive(self, *more: Path) -> Iterator[None]:
        """Give signs of life while the block lasts, also in ``more``; at its end, release what is ours."""
        ended = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(ended, more), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            for run_id in list(self._own):
                self.release(run_id)

    def _beat_until(self, ended: threading.Event, more: Sequence[Path]) -> None:
        while not ended.wait(self._dead_after / SIGNS):
            with self._guard:
                paths = [self._path(run_id) for run_id in self._own]
            for path in (*paths, *more):
                try:
                    os.utime(path)  # by the file server's clock
                except OSError:
                    continue  # released, taken over, or the server is away for a moment

    def forget_dead(self) -> None:
        """Remove the claims of dead processes, whose runs may be done."""
        for path in self._folder.glob("*.json"):
            self._removed(path)

    def _taken_over(self, path: Path, content: bytes) -> bool:
        """Put ``content`` in the place of a dead process's claim."""
        return self._removed(path) and write_new(path, content)

    def _removed(self, path: Path) -> bool:
        """Remove a claim if it is a dead process's, or none; whether it was, or nothing is there."""
        before = _bytes_of(path)
        if before is None:
            return not path.exists()
        claim = read_claim(path, self.now())
        if claim is not None and not claim.is_dead(self._dead_after):
            return False
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.dead")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        try:
            moved = _bytes_of(aside)
            if moved == before:
                return True
            write_new(path, moved or b"")  # another process was faster: give it back
            return False
        finally:
            aside.unlink(missing_ok=True)

    def now(self) -> float:
        """Return the time by the clock of whoever keeps the folder.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        return server_time(self._folder)

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.json"


def server_time(folder: Path) -> float:
    """Return the time by the clock of whoever keeps ``folder``: that of a file made there just now.

    Raises:
        OSError: it cannot be written.
    """
    with written_aside(folder / "clock", b"") as file:
        return file.stat().st_mtime


def read_claim(path: Path, now: float) -> Claim | None:
    """Return the claim in a file; None: it is gone, or is none."""
    try:
        age = now - path.stat().st_mtime
        values = json.loads(path.read_bytes())
        return Claim(path.stem, Place.read(values["place"]), dict(values["facts"]), age)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(run_id: str, facts: Mapping[str, Any]) -> bytes:
    values = {
        "run": run_id,
        "claim": uuid.uuid4().hex,
        "place": here().write(),
        "facts": dict(facts),
    }
    return json.dumps(values).encode()


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
