"""Slurm on this machine for as long as a test needs it: one node with two "GPUs", which are plain files.

    python -m tests.slurm.cluster

starts one, says which ``SLURM_CONF`` to use, and stops it at Ctrl-C. Its files lie in a folder of its own.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=1
KillWait=2
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt install slurm-wlm munge"
    if os.getuid() != 0:
        return "munged and slurmd of a test need root"
    return None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Cluster:
    """A running cluster.

    Args:
        folder: for its files; its path has to be short, for there are sockets in it.
        cpus: of the node.
        port: of the controller; the node has the next one.
    """

    def __init__(self, folder: Path, cpus: int = 2, port: int = 16817) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        host = platform.node().split(".")[0]
        self._host = host
        for name in ("run", "state", "spool", "log"):
            (folder / name).mkdir(mode=0o700)
        facts = {"host": host, "user": "root", "folder": folder, "cpus": cpus}
        self.conf.write_text(CONF.format(**facts, port=port, next_port=port + 1))
        files = [folder / f"gpu{number}" for number in range(2)]
        for file in files:
            file.touch()
        (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-1]\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> None:
        """Start all of it, and wait until the node takes jobs."""
        run = self.folder / "run"
        self._run(
            "munged",
            f"--key-file={self.folder / 'munge.key'}",
            f"--socket={run / 'munge.socket'}",
            f"--pid-file={run / 'munged.pid'}",
            f"--seed-file={run / 'munged.seed'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
            "--force",
        )
        self.start_controller()
        self._run("slurmd", "-f", str(self.conf), "-N", self._host)
        self._wait_for_node()

    def start_controller(self) -> None:
        """Start the controller."""
        self._run("slurmctld", "-f", str(self.conf))

    def stop_controller(self) -> None:
        """Kill the controller, as a machine that goes down does."""
        self._kill("slurmctld", signal.SIGKILL)

    def stop(self) -> None:
        """Stop all of it."""
        for name in ("slurmd", "slurmctld", "munged"):
            self._kill(name, signal.SIGTERM)

    def ask(self, *words: str) -> str:
        """Return what a command of Slurm prints."""
        return self._run(*words).stdout

    def takes(self, *words: str) -> bool:
        """Whether Slurm does as a command says: it does not of a job that has just ended."""
        return self._run(*words, check=False).returncode == 0

    def _wait_for_node(self) -> None:
        end = time.monotonic() + 60
        while "idle" not in self._run("sinfo", "--noheader", "--format=%t", check=False).stdout:
            if time.monotonic() > end:
                raise RuntimeError(f"the node takes no jobs; see {self.folder / 'log'}")
            time.sleep(0.2)

    def _run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": _path()}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {done.stderr.strip() or done.returncode}")
        return done

    def _kill(self, name: str, number: int) -> None:
        """End a daemon and wait for that."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            os.kill(pid, number)
        except (OSError, ValueError):
            return
        end = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp", ignore_cleanup_errors=True) as name:
        made = Cluster(Path(name))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def main() -> None:
    """Start a cluster and wait."""
    if reason := missing():
        sys.exit(reason)
    with cluster() as made:
        print(f"export SLURM_CONF={made.conf}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
