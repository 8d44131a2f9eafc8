"""Turns a training checkpoint into safetensors, in a process of its own.

A training checkpoint of OpenMMLab is a pickle of Python objects, and reading it runs what it says. So the
caller only starts this module as a program, with the names of both files, once the user has said that they
trust the file, and reads tensors back.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.checkpoints import CONTAINERS
from vit_ptq_bench.tasks.storage.identity import file_id


def convert_checkpoint(source: Path, out: Path) -> str:
    """Write the weights of a trusted checkpoint as safetensors; return the hash of ``source``.

    The hash and the name of the source stand in the file's metadata.

    Raises:
        TaskError: the file is missing, or holds no state dict.
    """
    identity = file_id(source)
    command = [
        sys.executable,
        "-m",
        "vit_ptq_bench.tasks.detection.unpickle",
        str(source),
        str(out),
        identity,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise TaskError(f"{source}: could not be converted: {lines[-1]}")
    return identity


def _unpickle(source: Path, out: Path, identity: str) -> None:
    data: Any = torch.load(source, map_location="cpu", weights_only=False)
    for key in CONTAINERS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    tensors = {
        name.removeprefix("module."): value.detach().clone().contiguous()
        for name, value in (data.items() if isinstance(data, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise TaskError("the file holds no state dict (names of parameters -> tensors)")
    temporary = out.with_name(f".{out.name}.part")
    save_file(tensors, temporary, metadata={"source": source.name, "source_sha256": identity})
    temporary.replace(out)


if __name__ == "__main__":
    _unpickle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
