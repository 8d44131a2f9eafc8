"""Saving and loading quantized models: safetensors with packed integer codes.

The file holds, by parameter name: the codes of each quantized weight, packed to its bit width
(``<layer>.weight.codes``), the buffers of every quantizer (scales, zero points, what else a form has), and
everything that stayed in floating point, the corrections of blocks (``<block>.correction.weight``) among
it, and a mark where ReLU took an activation's place. The header holds the bit table, facts about the model,
and a hash over all of it. Loading runs no code from the file, and takes no value that no quantizer or layer
can have.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.activation import MARK, mlps_of
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.correction import NAME as CORRECTION
from vit_ptq_bench.methods.quantization.model.correction import attach_correction
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantLayerNorm,
    WeightedOperation,
    ensured_bias,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import DualUniformQuantizer
from vit_ptq_bench.permissions import make_ordinary

FORMAT = "vit-ptq-bench/2"

UNSIGNED_FORMAT = "vit-ptq-bench/1"
"""Of files made before there was a hash over header and tensors; they are read, and said to have none."""

_CODES = ".weight.codes"

_SPEC_TYPES = {"bits": int, "granularity": str, "symmetric": bool, "dynamic": bool, "scheme": str}
"""Field of a bit table's entry -> type that JSON gives it."""


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (uint8, any shape, values below 2^bits) into a byte stream (uint8, 1-D)."""
    planes = np.unpackbits(codes.cpu().numpy().reshape(-1, 1), axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def unpack_codes(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Inverse of `pack_codes`; raises `MethodError` if the stream is too short for ``shape``."""
    count = shape.numel()
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise MethodError(
            f"{packed.numel()} bytes of codes do not fit {tuple(shape)} at {bits} bits"
        )
    stream = np.unpackbits(packed.cpu().numpy())[: count * bits].reshape(count, bits)
    padded = np.pad(stream, ((0, 0), (8 - bits, 0)))
    return torch.from_numpy(np.packbits(padded, axis=1).reshape(shape))


def save_quantized(model: QuantizedModel, path: Path, metadata: Mapping[str, Any]) -> int:
    """Write a frozen model and return the size of the file in bytes.

    Args:
        model: what `Method.quantize` returned.
        path: the file; it appears complete or not at all.
        metadata: JSON-ready facts to keep with it (model, task, method, ...).
    """
    frozen = {op.name: op for op in model.weighted_operations() if op.frozen}
    tensors = {
        name: tensor.contiguous().cpu()
        for name, tensor in model.state_tensors().items()
        if tensor.numel() and name.removesuffix(".weight") not in frozen
    }
    for name, operation in frozen.items():
        assert operation.codes is not None
        tensors[name + _CODES] = pack_codes(operation.codes, operation.weight_quantizer.spec.bits)
    header = {
        "format": FORMAT,
        "table": json.dumps(model.table.to_dict(), sort_keys=True),
        "metadata": json.dumps(dict(metadata), sort_keys=True),
    }
    header["sha256"] = _checksum(tensors, header)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(_unshared(tensors), temporary, metadata=header)
        make_ordinary(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory; tied parameters are written twice."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


@dataclass(frozen=True)
class SavedModel:
    """What a file of `save_quantized` holds, read at one moment.

    Attributes:
        path: the file.
        table: its bit table.
        metadata: the facts that were kept with it.
        tensors: by name.
        signed: whether it had a hash over all of this, and the hash is right. Files of release 0.1 had none.
    """

    path: Path
    table: BitTable
    metadata: dict[str, Any]
    tensors: Mapping[str, Tensor]
    signed: bool

    def build(self, model: nn.Module) -> QuantizedModel:
        """Return the quantized model, with ``model`` as in `load_quantized`.

        Raises:
            MethodError: tensors that do not fit the architecture, or that no calibration gives.
        """
        tensors = dict(self.tensors)
        try:
            quantized = wrap_model(model, self.table)
            _make_biases(quantized, tensors)
            for segment in quantized.structure.segments:
                if f"{segment.name}.{CORRECTION}.weight" in tensors:
                    attach_correction(quantized, segment)
            _replace_activations(quantized, tensors)
            loaded = _load_quantizers(quantized, tensors)
            _check_groups(quantized)
            _load_codes(quantized, tensors)
            _load_rest(quantized, tensors, loaded)
            quantized.freeze()
        except MethodError as error:
            raise MethodError(f"{self.path}: {error}; save it again") from error
        return quantized


def read_saved(path: Path) -> SavedModel:
    """Read a saved model, without building it.

    Raises:
        MethodError: the file is missing, damaged, changed since it was saved, or no quantized model.
    """
    tensors, header = _parsed(path, _content(path))
    if header.get("format") not in (FORMAT, UNSIGNED_FORMAT):
        raise MethodError(
            f"{path}: not a quantized model of this benchmark (format {FORMAT}); `bench run --save-models` "
            "keeps such files"
        )
    signed = header["format"] == FORMAT
    keys = {"format", "table", "metadata"} | ({"sha256"} if signed else set())
    if set(header) != keys:
        raise MethodError(
            f"{path}: its header has {sorted(header)}, not {sorted(keys)}; save the model again"
        )
    if signed and header.pop("sha256") != _checksum(tensors, header):
        raise MethodError(
            f"{path}: header or tensors are not those that were saved (the hash over them differs): "
            "the file is damaged or was edited; save the model again"
        )
    return SavedModel(
        path,
        _table(path, _json_object(path, header, "table")),
        _json_object(path, header, "metadata"),
        tensors,
        signed,
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a saved model.

    Raises:
        MethodError: see `read_saved`.
    """
    return read_saved(path).metadata


def load_quantized(path: Path, model: nn.Module) -> QuantizedModel:
    """Rebuild a saved quantized model.

    Args:
        path: written by `save_quantized`.
        model: the unquantized architecture; its weights do not matter and are not changed.

    Raises:
        MethodError: a file that cannot be read, of another format, damaged or edited, tensors that do not fit
            the architecture, or values that no quantizer or layer can have (NaN, scales of zero).
    """
    return read_saved(path).build(model)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes (64 hexadecimal digits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MethodError(f"{path}: no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise MethodError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise MethodError(f"{path}: is larger than the memory that is free") from error


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch does not have
        raise MethodError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, save it again"
        ) from error
    # The library has checked it by now: JSON, an object of objects, the metadata texts by name.
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Hash over the header's texts and over name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _json_object(path: Path, header: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(header[key])
    except (ValueError, RecursionError) as error:
        raise MethodError(
            f"{path}: the entry {key!r} of its header is no JSON; save the model again"
        ) from error
    if not isinstance(value, dict):
        raise MethodError(f"{path}: the entry {key!r} of its header is no object; save it again")
    return value


def _table(path: Path, data: Mapping[str, Any]) -> BitTable:
    for site, entry in data.items():
        if not isinstance(entry, dict):
            raise MethodError(f"{path}: the bit table's entry {site!r} is no object; save it again")
        for field, kind in _SPEC_TYPES.items():
            if field in entry and type(entry[field]) is not kind:
                raise MethodError(
                    f"{path}: {field!r} of the bit table's {site!r} must be {kind.__name__}, not "
                    f"{str(entry[field])[:40]!r}; save the model again"
                )
    try:
        return BitTable.from_dict(data)
    except MethodError as error:
        raise MethodError(f"{path}: {error}; save the model again") from error


def _replace_activations(quantized: QuantizedModel, tensors: Mapping[str, Tensor]) -> None:
    """Put ReLU where the file says that it was."""
    for mlp in mlps_of(quantized):
        mark = tensors.get(f"{mlp.place}.{MARK}")
        if mark is None:
            continue
        if mark.dtype != torch.uint8 or mark.flatten().tolist() != [1]:
            raise MethodError(f"{mlp.place} has a mark of ReLU that is not 1")
        mlp.use_relu()


def _make_biases(quantized: QuantizedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give layers without a bias one where the file has one: what is folded into a layer goes there."""
    for name, module in quantized.module.named_modules():
        layer = isinstance(module, WeightedOperation | nn.Linear | nn.Conv2d)
        if layer and f"{name}.bias" in tensors:
            ensured_bias(module)


def _load_quantizers(quantized: QuantizedModel, tensors: dict[str, Tensor]) -> set[str]:
    """Move the quantizers' buffers out of ``tensors`` and return their names.

    They are put in place, not copied: in a model just wrapped they are empty, so no copy fits.
    """
    buffers = _quantizer_buffers(quantized)
    loaded = {name for name in set(tensors) & set(buffers) if tensors[name].numel()}
    for name in loaded:
        module, buffer = buffers[name]
        setattr(module, buffer, tensors.pop(name))
    return loaded


def _quantizer_buffers(quantized: QuantizedModel) -> dict[str, tuple[nn.Module, str]]:
    """Return, by full name, module and name of every persistent buffer in the quantizers."""
    return {
        f"{path}.{buffer}": (part, buffer)
        for site, quantizer in quantized.module.named_modules()
        if isinstance(quantizer, Quantizer)
        for path, part in quantizer.named_modules(prefix=site)
        for buffer in part._buffers.keys() - part._non_persistent_buffers_set
    }


def _check_groups(quantized: QuantizedModel) -> None:
    """Refuse scales that do not meet what they quantize, as far as its size is known."""
    for operation in quantized.operations:
        if isinstance(operation, WeightedOperation):
            rows, columns = operation.weight.shape[:2]
            _check_meets(operation.weight_quantizer, rows, operation.weight[0].numel())
            _check_meets(operation.input_quantizer, columns)
        elif isinstance(operation, QuantLayerNorm):
            _check_meets(operation.input_quantizer, operation.normalized_shape[-1])
    for attention in quantized.modules():
        if isinstance(attention, QuantSelfAttention):
            for product in (attention.scores, attention.context):
                for quantizer in product.quantizers().values():
                    _check_meets(quantizer, attention.num_heads)


def _check_meets(quantizer: Quantizer, size: int, columns: int = 0) -> None:
    count = quantizer.groups
    if not count:  # none yet, or known to the form alone
        return
    fits = count == 1 or (quantizer.axis is not None and size % count == 0)
    if isinstance(quantizer, DualUniformQuantizer):
        fits = fits and tuple(quantizer.outliers.shape) in ((0,), (columns,))
    if quantizer.scale.dim() != 1 or not fits:
        raise MethodError(
            f"{quantizer.site} has scales {tuple(quantizer.scale.shape)} that do not meet {size} entries"
        )


def _load_codes(quantized: QuantizedModel, tensors: dict[str, Tensor]) -> None:
    for operation in quantized.weighted_operations():
        packed = tensors.pop(operation.name + _CODES, None)
        quantizer = operation.weight_quantizer
        if packed is None:
            continue
        if not isinstance(quantizer, CodedQuantizer) or quantizer.spec.is_float:
            raise MethodError(f"there are codes of {operation.name}, whose weight has none")
        if not quantizer.scale.numel():
            raise MethodError(f"there are codes, but no scales, of {operation.name}")
        problem = quantizer.code_problem()
        if problem is not None:
            raise MethodError(f"{quantizer.site} has {problem}")
        _set_packed(operation, packed)


def _set_packed(operation: WeightedOperation, packed: Tensor) -> None:
    quantizer = operation.weight_quantizer
    try:
        stored = unpack_codes(packed, quantizer.spec.bits, operation.weight.shape)
    except MethodError as error:
        raise MethodError(f"{operation.name}: {error}") from error
    operation.set_codes(stored.to(torch.int32) + operation.code_offset)


def _load_rest(quantized: QuantizedModel, tensors: dict[str, Tensor], loaded: set[str]) -> None:
    state = quantized.state_tensors()
    coded = {
        op.name: op.frozen
        for op in quantized.weighted_operations()
        if op.frozen or (isinstance(op.weight_quantizer, CodedQuantizer) and _is_static(op))
    }
    expected = {name for name, tensor in state.items() if tensor.numel()} - loaded
    expected -= {f"{name}.weight" for name in coded}
    expected |= {name + _CODES for name, found in coded.items() if not found}
    missing, unexpected = expected - set(tensors), set(tensors) - expected
    common = sorted(expected & set(tensors))
    shapes = [n for n in common if tensors[n].shape != state[n].shape]
    types = [n for n in common if tensors[n].dtype != state[n].dtype]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": shapes,
        "of another type": types,
    }
    if any(problems.values()):
        told = "; ".join(f"{what} {names[:3]}" for what, names in problems.items() if names)
        raise MethodError(f"does not fit the model: {told}")
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _is_static(operation: WeightedOperation) -> bool:
    spec = operation.weight_quantizer.spec
    return not spec.is_float and not spec.dynamic
