"""Checkpoints as people have them: which weights are taken, what is said of it, and what is refused."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from vit_ptq_bench.tasks import classification
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.identity import file_id
from vit_ptq_bench.tasks.storage.weights import load_weights

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}

State = dict[str, torch.Tensor]


def build(kind: str = "VisionTransformer", **more: Any) -> nn.Module:
    settings = SWIN if "Swin" in kind else TINY
    return classification.create_by_class(
        kind, {"img_size": 16, "num_classes": 5} | settings | more
    ).eval()


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(build().state_dict())


def averaged(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def to_torch(data: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer, **options)
    return buffer.getvalue()


def loaded(folder: Path, content: object, name: str = "m.pth", **more: Any) -> tuple[State, str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else to_torch(content))
    module = more.get("module") or build()
    weights = load_weights(module, path, classification.adapted_state)
    assert weights.identity == file_id(path)
    return dict(module.state_dict()), " ".join(weights.notes)


def refused(folder: Path, content: object, name: str = "m.pth", **more: Any) -> str:
    with pytest.raises(TaskError) as caught:
        loaded(folder, content, name, **more)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def same(found: State, state: State) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in state.items())


WRAPPED: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
    "both, other way": lambda s: {"model": prefixed(s, "_orig_mod.module.")},
    "compiled blocks": lambda s: {
        n.replace("blocks.0", "blocks.0._orig_mod"): t for n, t in s.items()
    },
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2"},
    "Lightning, DataParallel": lambda s: {"state_dict": prefixed(s, "model.module.")},
    "another attribute": lambda s: {"state_dict": prefixed(s, "classifier_net.")},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "network": lambda s: {"network": s, "loss": torch.zeros(1)},
    "optimizer beside": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 7,
    },
    "extra buffers": lambda s: (
        s
        | {
            "blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.long),
            "blocks.1.attn_mask": torch.full((4, 4), -torch.inf),
            "total_ops": torch.zeros(1),
            "blocks.0.total_params": torch.zeros(1),
        }
    ),
    "swa_utils": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(3)},
    "mmengine's copy": lambda s: s | {f"ema_{n.replace('.', '_')}": t + 1 for n, t in s.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrapped_weights_are_found(form: str, state: State, tmp_path: Path) -> None:
    found, notes = loaded(tmp_path, WRAPPED[form](state))
    assert same(found, state)
    assert not notes


@pytest.mark.parametrize(
    ("form", "taken", "said"),
    [
        (
            lambda s: {"model_ema": averaged(s)},
            averaged,
            "averaged (EMA) weights alone ('model_ema')",
        ),
        (lambda s: {"state_dict_ema": averaged(s)}, averaged, "alone ('state_dict_ema')"),
        (
            lambda s: {"model_ema": averaged(s), "model": s},
            dict,
            "raw and averaged (EMA) weights: the raw ones were taken ('model'), not 'model_ema'",
        ),
        (
            lambda s: {
                "state_dict": prefixed(s, "model.") | prefixed(averaged(s), "ema_model.module.")
            },
            dict,
            "the raw ones were taken ('state_dict.model'), not 'state_dict.ema_model.module'",
        ),
        (
            lambda s: {"state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(5)}},
            dict,
            "1 tensors that are not the model's were left out",
        ),
        (
            lambda s: {"model": averaged(s), "state_dict": s},
            dict,
            "several state dicts: 'state_dict' was taken, not 'model'",
        ),
    ],
)
def test_which_of_several_was_taken_is_said(
    form: Callable[[State], object],
    taken: Callable[[State], State],
    said: str,
    state: State,
    tmp_path: Path,
) -> None:
    found, notes = loaded(tmp_path, form(state))
    assert same(found, taken(state))
    assert said in notes


def test_of_two_models_none_is_guessed(state: State, tmp_path: Path) -> None:
    told = refused(tmp_path, {"student": state, "teacher": averaged(state)})
    assert "holds several models ('student', 'teacher')" in told


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.pth.tar", "m.ckpt", "m.safetensors", "m"])
def test_the_content_tells_what_a_file_is(name: str, state: State, tmp_path: Path) -> None:
    assert same(loaded(tmp_path, to_safetensors(state), name)[0], state)
    assert same(loaded(tmp_path, to_torch(state), name)[0], state)
    legacy = to_torch({"model": state}, _use_new_zipfile_serialization=False)
    assert same(loaded(tmp_path, legacy, name)[0], state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    given = {name: tensor.to(dtype) for name, tensor in state.items()}
    found, _ = loaded(tmp_path, given)
    assert same(found, {name: tensor.float() for name, tensor in given.items()})


def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(1)
    larger = dict(build(img_size=24).state_dict())
    found, notes = loaded(tmp_path, {"module." + n: t for n, t in larger.items()})
    assert torch.equal(found["pos_embed"], resample_abs_pos_embed(larger["pos_embed"], [4, 4]))
    assert "pos_embed was resampled by timm from (1, 37, 16) to (1, 17, 16)" in notes
    torch.manual_seed(1)
    swin = dict(build("SwinTransformer", window_size=2).state_dict())
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    _, notes = loaded(tmp_path, swin, module=build("SwinTransformer"))
    assert f"{table} was resampled by timm from (9, 2) to (49, 2)" in notes


def test_swin_in_its_authors_layout_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = dict(build("SwinTransformer").state_dict())
    authors = {
        n.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): t
        for n, t in state.items()
    }
    authors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(
        16, 16, dtype=torch.long
    )
    found, notes = loaded(tmp_path, {"model": authors}, module=build("SwinTransformer"))
    assert same(found, state)
    assert "came in another layout" in notes


def without(state: State, name: str) -> State:
    return {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda s: without(s, "blocks.1.attn.qkv.weight"), "1 missing: blocks.1.attn.qkv.weight"),
        (lambda s: s | {"blocks.2.norm1.weight": torch.ones(16)}, "1 unexpected: blocks.2.norm1"),
        (
            lambda s: s | {"head.weight": torch.zeros(7, 16), "head.bias": torch.zeros(7)},
            "head.weight is (7, 16), the model has (5, 16); it seems to be trained on another number of",
        ),
        (
            lambda s: s | {"norm.bias": torch.full((16,), torch.nan)},
            "NaN or infinite values (norm.bias)",
        ),
        (lambda s: s | {"norm.bias": torch.full((16,), torch.inf).half()}, "NaN or infinite"),
        (
            lambda s: {n: t.to(torch.int8) for n, t in s.items()},
            "of another type: blocks.0.attn.proj",
        ),
        (
            lambda s: s | {"norm.bias": torch.zeros(16).to_sparse()},
            "norm.bias is float32, torch.spar",
        ),
        (
            lambda s: s | {"norm.bias": torch.zeros(16, device="meta")},
            "1 of another type: norm.bias",
        ),
        (lambda s: {"vit.encoder.layer.0.weight": torch.ones(3)}, "(another model or library)"),
        (lambda s: {"epoch": 3}, "holds no state dict"),
        (lambda s: [1, 2], "holds no state dict"),
        (lambda s: "weights", "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    form: Callable[[State], object], said: str, state: State, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, form(state))


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as out:
        for name, content in parts.items():
            out.writestr(name, content)
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346284714\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (LFS, "is a Git LFS pointer, not the weights"),
        (b"<!DOCTYPE html>\n<html>Sign in", "is a web page (HTML), not weights"),
        (b"\xef\xbb\xbf\r\n <HTML><body>404", "is a web page (HTML), not weights"),
        (b'{"weight_map": {"a": "model-00001.safetensors"}}', 'is text (\'{"weight_map"'),
        (b"Entry not found", "is text ('Entry not found' ...), not weights"),
        (gzip.compress(b"x" * 99, mtime=0), "is compressed with gzip: unpack it first"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "is a tar archive"),
        (
            archive({"model.pth": b"x"}),
            "a zip archive that torch did not write (it holds model.pth)",
        ),
        (archive({}), "not a readable checkpoint"),
        (numpy_archive(), "is a NumPy archive (JAX or Flax weights)"),
        (scripted(), "is a TorchScript archive, a program with weights"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
        (bytes(1000), "not a readable checkpoint"),
        (random.Random(0).randbytes(1000), "not a readable checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, content)


def test_folders_and_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(
        TaskError, match=r"folder\.pth: is a folder; give the checkpoint file in it"
    ):
        load_weights(build(), tmp_path / "folder.pth")
    (tmp_path / "dangling.pth").symlink_to(tmp_path / "nothing")
    with pytest.raises(TaskError, match=r"dangling\.pth: no such checkpoint file"):
        load_weights(build(), tmp_path / "dangling.pth")


def test_a_single_flipped_bit_in_the_data_of_an_archive_is_found(
    state: State, tmp_path: Path
) -> None:
    """torch itself reads over it: its archives have checksums that it does not compare."""
    content = bytearray(to_torch(state))
    place = content.find(state["blocks.1.mlp.fc1.weight"].numpy().tobytes()) + 2
    content[place] ^= 1
    torch.load(io.BytesIO(content), weights_only=True)
    told = refused(tmp_path, bytes(content))
    assert "parts are damaged" in told and "wrong checksum" in told


def test_archives_without_checksums_are_read(state: State, tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = to_torch(state)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(loaded(tmp_path, content)[0], state)


def parts_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_a_tensor_that_claims_more_than_its_data_shows_no_other_memory(
    state: State, tmp_path: Path
) -> None:
    parts = parts_of(to_torch(state))
    name = next(name for name in parts if name.endswith("/data/0"))
    parts[name] = parts[name][:8]
    told = refused(tmp_path, archive(parts))
    # Recent releases of torch look themselves.
    assert "claims another size than its data have" in told or "record size" in told


def test_a_decompression_bomb_is_not_unpacked(state: State, tmp_path: Path) -> None:
    parts = parts_of(to_torch(state)) | {"archive/data/9": bytes(50_000_000)}
    told = refused(tmp_path, archive(parts, zipfile.ZIP_DEFLATED))
    assert "bytes, which no weights do" in told
    compressed = archive(parts_of(to_torch(state)), zipfile.ZIP_DEFLATED)
    assert same(loaded(tmp_path, compressed)[0], state), "packed by hand, and honest"


@pytest.mark.parametrize("shape", [[2**62, 2**62], [2**40], [-1], "x", None, [1.5]])
def test_a_safetensors_header_that_claims_nonsense_is_refused(
    shape: object, state: State, tmp_path: Path
) -> None:
    content = to_safetensors(state)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["norm.weight"]["shape"] = shape
    text = json.dumps(header).encode()
    for claimed in (len(text), 2**63):
        changed = struct.pack("<Q", claimed) + text + content[8 + length :]
        assert "not a readable safetensors file" in refused(tmp_path, changed, "m.safetensors")


@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
def test_damage_of_any_kind_is_told_in_a_sentence(kind: str, state: State, tmp_path: Path) -> None:
    """Either the file still loads, or it is refused in words; nothing else comes out."""
    content = {
        "archive": to_torch({"model": state}),
        "legacy": to_torch(state, _use_new_zipfile_serialization=False),
        "safetensors": to_safetensors(state),
    }[kind]
    generator, module, told = random.Random(kind), build(), 0
    path = tmp_path / "damaged.pth"
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[generator.randrange(len(damaged)) :]
        elif trial % 3 == 1:
            damaged[generator.randrange(min(3000, len(damaged)))] ^= 1 << generator.randrange(8)
        else:
            place = generator.randrange(len(damaged))
            damaged[place : place + 8] = generator.randbytes(generator.randrange(16))
        path.write_bytes(damaged)
        try:
            load_weights(module, path, classification.adapted_state)
        except TaskError as error:
            told += 1
            assert "damaged.pth" in str(error)
    assert told > 90
