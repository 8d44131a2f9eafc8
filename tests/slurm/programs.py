"""Programs with the names of Slurm's, which carry out jobs at once: for tests of what surrounds Slurm.

They know what submitit writes and no more; how a real Slurm behaves `test_slurm` shows, where there is one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.toys import ROOT

SBATCH = r"""
# Each element of the array is a process in the background, and a file while it lasts.
number=$(($(ls "$jobs" | grep -c '\.sent$') + 1))
sent=$jobs/$number.sent
cp "$1" "$sent"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$sent")
carried_out() {
    touch "$jobs/$1.job"
    (bash "$sent"; rm "$jobs/$1.job") < /dev/null > "$jobs/$1.out" 2>&1 &
}
export SLURM_JOB_ID=$number SLURM_JOB_NODELIST=node SLURM_JOB_NUM_NODES=1
export SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
if [ -z "$last" ]; then
    carried_out "$number"
else
    export SLURM_ARRAY_JOB_ID=$number
    for SLURM_ARRAY_TASK_ID in $(seq 0 "$last"); do
        export SLURM_ARRAY_TASK_ID
        carried_out "${number}_$SLURM_ARRAY_TASK_ID"
    done
fi
echo "Submitted batch job $number"
"""

SQUEUE = r"""
for job in $(ls "$jobs" | sed -n 's/\.job$//p'); do echo "$job RUNNING"; done
"""

SRUN = r"""
while [ "${1#-}" != "$1" ]; do
    [ "$1" = --unbuffered ] || shift
    shift
done
exec "$@"
"""


class Programs:
    """The programs, first on the path.

    Args:
        folder: for them and what they note.
        monkeypatch: ends them with the test.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._jobs = folder / "jobs"
        self._jobs.mkdir(parents=True)
        jobs = f"jobs={self._jobs}\n"
        bodies = {
            "sbatch": jobs + SBATCH,
            "squeue": jobs + SQUEUE,
            "srun": SRUN,
            "scontrol": "exit 1",
            "scancel": "exit 0",
        }
        for name, body in bodies.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    @property
    def arrays(self) -> list[str]:
        """The batch scripts that were submitted, in order."""
        paths = sorted(self._jobs.glob("*.sent"), key=lambda path: int(path.stem))
        return [path.read_text() for path in paths]
