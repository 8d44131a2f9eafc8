"""Mutated checkpoints: torch's, safetensors', and saved quantized models.

What is loaded has to be, to the bit, what a reader of its own finds in the very file, or what was put there.
"""

from __future__ import annotations

import gzip
import json
import math
import pickle
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults.command import Said
from tests.faults.flips import evaluate
from tests.faults.mutations import TEXTS, mutate_bytes, mutate_file, mutate_tree
from tests.faults.sweeps import finished_sweep
from tests.faults.trials import Kind, Outcome, faulty
from vit_ptq_bench.tasks.storage.model_cards import weights_path

MODEL = "vit_mini"

State = dict[str, Any]
"""Name -> tensor."""


def bundled_state() -> State:
    """The weights of the bundled model."""
    torch.set_num_threads(1)
    return dict(load_file(weights_path(MODEL)))


def judge(path: Path, expected: State | None, fault: str, choice: bool = False) -> Outcome:
    """Load the model with the checkpoint as a run does.

    Args:
        path: the checkpoint.
        expected: what it holds; None: nothing that fits.
        fault: in words.
        choice: whether it holds two models, so that a note has to say which was taken.
    """
    from vit_ptq_bench.tasks.api.options import TaskOptions
    from vit_ptq_bench.tasks.api.registry import TASKS

    task = TASKS.get("fashion")(TaskOptions(checkpoint=path))
    task.weights_id(MODEL)
    loaded = task.load_model(MODEL)
    if expected is None:
        return Outcome("silent", f"{fault}: it does not fit, and is loaded")
    if choice and not loaded.notes:
        return Outcome("silent", f"{fault}: one of two models was taken, and not a word")
    wrong = _differences(loaded.module.state_dict(), expected)
    if wrong:
        return Outcome("silent", f"{fault}: other weights: {wrong[:3]}")
    return Outcome("right", fault)


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [
        name
        for name, tensor in found.items()
        if tensor.dtype != torch.float32 or not torch.equal(tensor, expected[name].float())
    ]


# torch's files


@dataclass(frozen=True)
class Torch:
    """The weights, files of torch that hold them, and where mutated ones go."""

    state: State
    files: list[bytes]
    path: Path


def prepare_torch(folder: Path) -> Torch:
    """Both formats of torch, plain and inside a training script's dictionary."""
    state, path = bundled_state(), folder / "weights.pt"
    files = []
    for data in (state, {"state_dict": state, "epoch": 3, "optimizer": {"lr": [0.1]}}):
        for zipped in (True, False):
            torch.save(data, path, _use_new_zipfile_serialization=zipped)
            files.append(path.read_bytes())
            outcome = judge(path, state, "nothing")
            assert outcome.verdict == "right", outcome.text
    return Torch(state, files, path)


def trial_torch(base: Torch, number: int, rng: random.Random) -> Outcome:
    """Of three, one has changed bytes, one another content, one is of another kind."""
    if number % 3 == 0:
        content, fault = mutate_bytes(rng.choice(base.files[:1] + base.files[2:3]), rng)
        base.path.write_bytes(content)
        with faulty(fault):
            return judge(base.path, base.state, fault)
    if number % 3 == 1:
        data, expected, fault, choice = _other_content(base.state, rng)
        torch.save(data, base.path, _use_new_zipfile_serialization=rng.random() < 0.7)
        with faulty(fault):
            return judge(base.path, expected, fault, choice)
    content, fault = _other_kind(base, rng)
    base.path.write_bytes(content)
    with faulty(fault):
        return judge(base.path, None, fault)


def _other_content(state: State, rng: random.Random) -> tuple[Any, State | None, str, bool]:
    """What training scripts save, right or wrong: (data, expected, what it is, two models)."""
    kind = rng.choice(
        (
            "prefix",
            "container",
            "ema",
            "both",
            "dtype",
            "missing",
            "extra",
            "shape",
            "value",
            "tree",
        )
    )
    if kind == "prefix":
        prefix = rng.choice(
            ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.")
        )
        return {prefix + k: v for k, v in state.items()}, state, f"prefix {prefix}", False
    if kind == "container":
        key = rng.choice(
            ("state_dict", "model", "model_state_dict", "module", "model_ema", "state_dict_ema")
        )
        return {key: state, "epoch": 1, "args": None}, state, f"under {key}", False
    if kind == "ema":
        return {"model_ema": state}, state, "an average alone", False
    if kind == "both":
        other = {k: v + 1 for k, v in state.items()}
        return {"model": state, "model_ema": other}, state, "raw weights and an average", True
    name = rng.choice(sorted(state))
    changed = dict(state)
    if kind == "dtype":
        dtype = rng.choice((torch.float16, torch.bfloat16, torch.float64))
        changed = {k: v.to(dtype) for k, v in state.items()}
        return changed, {k: v.float() for k, v in changed.items()}, f"as {dtype}", False
    if kind == "missing":
        del changed[name]
        return changed, None, f"without {name}", False
    if kind == "extra":
        changed["somebody.elses.weight"] = state[name]
        return changed, None, "with a tensor more", False
    if kind == "shape":
        changed[name] = rng.choice(
            (state[name][..., :1], state[name][None], state[name].flatten()[:-1])
        )
        same = changed[name].shape == state[name].shape
        return changed, state if same else None, f"{name} is {tuple(changed[name].shape)}", False
    if kind == "value":
        changed[name] = state[name].clone()
        value = rng.choice((math.nan, math.inf, -math.inf))
        changed[name].view(-1)[rng.randrange(changed[name].numel())] = value
        return changed, None, f"{name} has {value}", False
    changed[name] = rng.choice((None, 1, "x", [1.0], {"a": 1}, state[name].tolist()))
    return changed, None, f"{name} is {changed[name]!r}"[:100], False


def _other_kind(base: Torch, rng: random.Random) -> tuple[bytes, str]:
    """A file that is no checkpoint, or one that wants to run a program."""

    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit(7)",)

    files = {
        "a web page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "nothing at all": b"",
        "text": rng.choice(TEXTS).encode("utf-8", "replace") * 50,
        "gzip": gzip.compress(base.files[0][:5000]),
        "a program": pickle.dumps({"state_dict": Program()}),
        "an old pickle of a program": pickle.dumps(Program(), protocol=2),
        "zeros": bytes(rng.randrange(1, 5000)),
        "noise": rng.randbytes(rng.randrange(1, 5000)),
        "a pickle of numbers": pickle.dumps([1, 2, 3]),
        "half a file": base.files[0][: len(base.files[0]) // 2],
        "the second half": base.files[0][len(base.files[0]) // 2 :],
    }
    name = rng.choice(sorted(files))
    return files[name], name


# safetensors


@dataclass(frozen=True)
class Safetensors:
    """A file of safetensors, taken apart, and where mutated ones go."""

    header: dict[str, Any]
    data: bytes
    path: Path


def prepare_safetensors(folder: Path) -> Safetensors:
    """The bundled weights."""
    content, path = weights_path(MODEL).read_bytes(), folder / "weights.safetensors"
    header, data = taken_apart(content)
    path.write_bytes(put_together(header, data))
    outcome = judge(path, read_safetensors(path.read_bytes()), "nothing")
    assert outcome.verdict == "right", outcome.text
    return Safetensors(header, data, path)


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file of safetensors."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: Any, data: bytes) -> bytes:
    """Inverse of `taken_apart`."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_safetensors(content: bytes) -> State | None:
    """The tensors by the format's own rules; None where they are broken or are not the model's."""
    try:
        header, data = taken_apart(content)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found, covered = {}, 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if begin != covered:
                return None
            covered = end
            dtype = getattr(torch, DTYPES[entry["dtype"]])
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(
                entry["shape"]
            )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        RecursionError,
        struct.error,
    ):
        return None
    own = bundled_state()
    fits = covered == len(data) and found.keys() == own.keys()
    fits = fits and all(found[name].shape == tensor.shape for name, tensor in own.items())
    return found if fits and all(bool(t.isfinite().all()) for t in found.values()) else None


def trial_safetensors(base: Safetensors, number: int, rng: random.Random) -> Outcome:
    """Changed bytes anywhere, changed text of the header, or another tree in it."""
    content = put_together(base.header, base.data)
    if number % 3 == 0:
        content, fault = mutate_bytes(content, rng)
    elif number % 3 == 1:
        tree, fault = mutate_tree(base.header, rng)
        content = put_together(tree, base.data)
    else:
        text, fault = mutate_file(json.dumps(base.header), rng)
        length = len(text) if rng.random() < 0.7 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
        content = struct.pack("<Q", length) + text + base.data
    base.path.write_bytes(content)
    with faulty(fault):
        return judge(base.path, read_safetensors(content), fault)


# Saved quantized models


@dataclass(frozen=True)
class Saved:
    """A saved quantized model, taken apart, what `bench evaluate` says of it, and where mutated ones go."""

    header: dict[str, Any]
    data: bytes
    said: Said
    path: Path


def prepare_saved(folder: Path) -> Saved:
    """A model that a sweep has kept."""
    output = finished_sweep(folder.parent / "sweep")
    source = min(output.glob("models/*/*/*.safetensors"), key=lambda path: path.stat().st_size)
    path = folder / source.name
    path.write_bytes(source.read_bytes())
    said = evaluate(path)
    assert said.status == 0, said.error
    return Saved(*taken_apart(source.read_bytes()), said, path)


def trial_saved(base: Saved, number: int, rng: random.Random) -> Outcome:
    """Changed bytes, another header, or values that no calibration gives in a file without a hash."""
    if number % 3 == 0:
        content, fault = mutate_bytes(put_together(base.header, base.data), rng)
    elif number % 3 == 1:
        tree, fault = mutate_tree(base.header, rng)
        content = put_together(tree, base.data)
    else:
        return _trial_unsigned(base, rng)
    base.path.write_bytes(content)
    with faulty(fault):
        return _judge_saved(base, fault, refuse=False)


def _judge_saved(base: Saved, fault: str, refuse: bool) -> Outcome:
    said = evaluate(base.path)
    if said.status:
        return Outcome("refused" if said.error.strip() else "traceback", f"{fault}: {said.error}")
    right = not refuse and said.out == base.said.out
    return Outcome("right" if right else "silent", f"{fault}: {said.out.strip()[-80:]}")


UNSIGNED = "vit-ptq-bench/1"
"""Format of the files of release 0.1, which have no hash over their content."""


def _trial_unsigned(base: Saved, rng: random.Random) -> Outcome:
    """Each of these has to be refused: the value or the name cannot be right."""
    header, data = json.loads(json.dumps(base.header)), bytearray(base.data)
    facts = header["__metadata__"]
    facts.pop("sha256", None)
    facts["format"] = UNSIGNED
    floats = [name for name, entry in header.items() if entry.get("dtype") == "F32"]
    kind = rng.choice(("value", "value", "scale", "remove", "rename", "fact", "spec"))
    name = rng.choice(floats)
    if kind in ("value", "scale"):
        scales = [name for name in floats if name.endswith("scale")]
        name = rng.choice(scales) if kind == "scale" else name
        values = (math.nan, math.inf, -math.inf) + ((0.0, -1.0) if kind == "scale" else ())
        begin, end = header[name]["data_offsets"]
        at = begin + 4 * rng.randrange((end - begin) // 4)
        value = rng.choice(values)
        data[at : at + 4] = struct.pack("<f", value)
        fault = f"{name} has {value}"
    elif kind == "remove":
        begin, end = header.pop(name)["data_offsets"]
        header["somebody.elses.weight"] = {
            "dtype": "F32",
            "shape": [(end - begin) // 4],
            "data_offsets": [begin, end],
        }
        fault = f"{name} is missing, another is there"
    elif kind == "rename":
        header[name + "_"] = header.pop(name)
        fault = f"{name} is called {name}_"
    else:
        fault = _other_facts(facts, kind, rng)
    base.path.write_bytes(put_together(header, bytes(data)))
    with faulty(fault):
        return _judge_saved(base, f"without a hash: {fault}", refuse=True)


def _other_facts(facts: dict[str, str], kind: str, rng: random.Random) -> str:
    told = json.loads(facts["metadata"])
    if kind == "spec":
        told.pop("spec")
        fault = "no specification"
    else:
        key = rng.choice(("method", "model", "task", "bits", "protocol", "run_id"))
        told[key] = rng.choice(
            ("omse", "deit_mini", "scenes", "W8A8", "authors", "0" * 16, 1, None, ["x"])
        )
        fault = f"{key} is {told[key]!r}"
    facts["metadata"] = json.dumps(told, sort_keys=True)
    return fault


KINDS = [
    Kind("pt", "mutated checkpoints of torch", 1000, prepare_torch, trial_torch),
    Kind(
        "safetensors", "mutated files of safetensors", 1000, prepare_safetensors, trial_safetensors
    ),
    Kind("saved", "mutated quantized models, evaluated", 1000, prepare_saved, trial_saved),
]
