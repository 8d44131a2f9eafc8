"""Turns a training checkpoint into safetensors, in a process of its own.

A training checkpoint of OpenMMLab is a pickle of Python objects, and reading it runs what it says. So the
caller only starts this module as a program, with the names of both files, once the user has said that they
trust the file, and reads tensors back.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vit_ptq_bench.permissions import make_ordinary
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.foreign_files import foreign_kind
from vit_ptq_bench.tasks.storage.identity import bytes_id, require_file
from vit_ptq_bench.tasks.storage.state_dicts import best_state_dict
from vit_ptq_bench.tasks.storage.weights import Weights

HEAD_BYTES = 4096
"""Bytes of a file that tell what it is."""


def convert_checkpoint(source: Path, out: Path) -> Weights:
    """Write the weights of a trusted checkpoint as safetensors; return the hash of ``source`` and notes.

    The hash and the name of the source stand in the file's metadata.

    Raises:
        TaskError: the file is missing, of another kind, or holds no state dict.
    """
    require_file(source)
    with source.open("rb") as file:
        kind = foreign_kind(file.read(HEAD_BYTES))
    if kind is not None:
        raise TaskError(f"{source}: {kind}")
    command = [
        sys.executable,
        "-m",
        "vit_ptq_bench.tasks.detection.unpickle",
        str(source),
        str(out),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise TaskError(f"{source}: could not be converted: {lines[-1]}")
    with safe_open(out, framework="pt") as written:
        facts = written.metadata()
    return Weights(facts["source_sha256"], tuple(json.loads(facts["notes"])))


def _unpickle(source: Path, out: Path) -> None:
    content = source.read_bytes()
    data: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    state, notes = best_state_dict(data, None, str(source))
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    facts = {
        "source": source.name,
        "source_sha256": bytes_id(content),
        "notes": json.dumps(notes),
    }
    temporary = out.with_name(f".{out.name}.part")
    save_file(tensors, temporary, metadata=facts)
    make_ordinary(temporary)
    temporary.replace(out)


if __name__ == "__main__":
    _unpickle(Path(sys.argv[1]), Path(sys.argv[2]))
