"""Saving and loading quantized models: safetensors with packed integer codes.

The file holds, by parameter name: the codes of each quantized weight, packed to its bit width
(``<layer>.weight.codes``), the buffers of every quantizer (scales, zero points, what else a form has), and
everything that stayed in floating point. The header holds the bit table. Loading runs no code from the file.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer

FORMAT = "vit-ptq-bench/1"

_CODES = ".weight.codes"


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(_unshared(tensors), temporary, metadata=header)
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


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a saved model.

    Raises:
        MethodError: the file is missing, truncated, or not a quantized model.
    """
    return dict(json.loads(_open(path)[1]["metadata"]))


def load_quantized(path: Path, model: nn.Module) -> QuantizedModel:
    """Rebuild a saved quantized model.

    Args:
        path: written by `save_quantized`.
        model: the unquantized architecture; its weights do not matter and are not changed.

    Raises:
        MethodError: unreadable file, other format, or tensors that do not fit the architecture.
    """
    tensors, header = _open(path)
    quantized = wrap_model(model, BitTable.from_dict(json.loads(header["table"])))
    for operation in quantized.weighted_operations():
        if f"{operation.name}.bias" in tensors:
            operation.ensure_bias()
    loaded = _load_quantizers(quantized, tensors)
    _load_codes(quantized, tensors)
    _load_rest(quantized, tensors, loaded, path)
    quantized.freeze()
    return quantized


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise MethodError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MethodError(
            f"{path}: not a readable safetensors file ({error}); save it again"
        ) from error
    if header.get("format") != FORMAT:
        raise MethodError(f"{path}: not a quantized model of this benchmark (format {FORMAT})")
    return tensors, header


def _load_quantizers(quantized: QuantizedModel, tensors: dict[str, Tensor]) -> set[str]:
    """Move the quantizers' buffers out of ``tensors`` and return their names.

    They are put in place, not copied: in a model just wrapped they are empty, so no copy fits.
    """
    buffers = _quantizer_buffers(quantized)
    loaded = set(tensors) & set(buffers)
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


def _load_codes(quantized: QuantizedModel, tensors: dict[str, Tensor]) -> None:
    for operation in quantized.weighted_operations():
        packed = tensors.pop(operation.name + _CODES, None)
        if packed is None:
            continue
        if not operation.weight_quantizer.initialised:
            raise MethodError(
                f"the file has codes, but no scales, of {operation.name}; save it again"
            )
        _set_packed(operation, packed)


def _set_packed(operation: WeightedOperation, packed: Tensor) -> None:
    quantizer = operation.weight_quantizer
    stored = unpack_codes(packed, quantizer.spec.bits, operation.weight.shape)
    operation.set_codes(stored.to(torch.int32) + operation.code_offset)


def _load_rest(
    quantized: QuantizedModel, tensors: dict[str, Tensor], loaded: set[str], path: Path
) -> None:
    state = quantized.state_tensors()
    coded = {f"{op.name}.weight" for op in quantized.weighted_operations() if op.frozen}
    expected = {name for name, tensor in state.items() if tensor.numel()} - coded - loaded
    missing, unexpected = expected - set(tensors), set(tensors) - expected
    wrong = [n for n in expected & set(tensors) if tensors[n].shape != state[n].shape]
    if missing or unexpected or wrong:
        raise MethodError(
            f"{path}: does not fit the model: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}, other shape {sorted(wrong)[:3]}"
        )
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
