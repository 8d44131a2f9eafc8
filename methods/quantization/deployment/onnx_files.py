"""ONNX files of quantized models: QuantizeLinear and DequantizeLinear wherever a site has them.

torch has no integers of 4 bits and no arithmetic with those of 16: the exported graph casts its constants to
them, and these casts are carried out before the file is written.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.deployment.double import (
    FLOAT32,
    FLOAT64,
    PRECISIONS,
    InDouble,
    require_double,
    translations,
    without_convolutions,
)
from vit_ptq_bench.methods.quantization.deployment.lowering import (
    LoweredSite,
    QuantizedGraph,
    lower,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

OPSETS = (18, 24)
"""First and last version of the operator set that can be written."""

OPSET = 21
"""The version that is written unless another is asked for."""

WIDER_OPSET = 21
"""Since this version QuantizeLinear and DequantizeLinear have integers of 4 and of 16 bits."""

LARGEST_BATCH = 4096

PRODUCER = "vit_ptq_bench"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the file.
        size: in bytes.
        opset: version of the operator set.
        sites: what became of each site.
        graph: what the file was written of, in torch; None: a model in full precision.
        precision: one of `PRECISIONS`.
    """

    path: Path
    size: int
    opset: int
    sites: tuple[LoweredSite, ...]
    graph: QuantizedGraph | None = None
    precision: str = FLOAT32


def write_onnx(
    model: QuantizedModel,
    image: Tensor,
    path: Path,
    opset: int = OPSET,
    packed: bool = False,
    facts: Mapping[str, str] | None = None,
    precision: str = FLOAT32,
) -> Written:
    """Write a quantized classifier, or a detector up to its heads, as an ONNX file for any number of images.

    Weights are stored as integers, of 4 bits where they have no more and the operator set has such integers,
    else of 8. Activations are quantized and dequantized where a uniform, static grid allows it; other forms
    are written as the arithmetic that they are, in floating point.

    Args:
        model: what `Method.quantize` or `load_quantized` returned, on the CPU.
        image: float32 [1, 3, H, W], of the size that the model takes.
        path: the file; it appears complete or not at all.
        opset: version of ONNX's operator set, see `OPSETS`.
        packed: store integers of 4 bits as integers of 8: runtimes multiply by those faster.
        facts: texts to keep in the file's metadata.
        precision: one of `PRECISIONS`, of all that is computed between integers.

    Raises:
        MethodError: the operator set or the precision is not one of those above, or something of the model
            cannot be computed in float64 by a runtime.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise MethodError(
            f"operator set {opset} cannot be written; give one of {OPSETS[0]} to {OPSETS[1]} "
            f"(integers of 4 bits since {WIDER_OPSET})"
        )
    if precision not in PRECISIONS:
        raise MethodError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    wide = opset >= WIDER_OPSET
    weights = ("uint4", "uint8") if wide and not packed else ("uint8",)
    activations = ("uint8", "uint16") if wide else ("uint8",)
    double = precision == FLOAT64
    lowered, sites = lower(model, weights, None if double else activations)
    graph = QuantizedGraph(lowered)
    if double:
        without_convolutions(lowered)
        program = _exported(InDouble(graph), image, opset, graph.says, translations())
        require_double(node.op_type for node in program.graph)
    else:
        program = _exported(graph, image, opset, graph.says)
    written = _written(program, path, opset, facts, tuple(sites))
    return replace(written, graph=graph, precision=precision)


def write_float_onnx(
    module: nn.Module, image: Tensor, path: Path, says: str = "logits", opset: int = OPSET
) -> Written:
    """Write a module in full precision, to hold a quantized one against.

    Args:
        module: maps images to a tensor or several.
        image, path, opset: as of `write_onnx`.
        says: name of its outputs in the file, numbered where there are several.
    """
    return _written(_exported(module.eval(), image, opset, says), path, opset, None, ())


def _written(
    program: ir.Model,
    path: Path,
    opset: int,
    facts: Mapping[str, str] | None,
    sites: tuple[LoweredSite, ...],
) -> Written:
    _store_integers(program)
    _forget_origins(program)
    program.metadata_props.update(facts or {})
    program.producer_name = PRODUCER
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        ir.save(program, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(path, path.stat().st_size, opset, sites)


def _exported(
    module: nn.Module,
    image: Tensor,
    opset: int,
    says: str,
    translated: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> ir.Model:
    """torch's export; two images, for a graph of one would take the batch for a constant."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own modules, about their own future
        program = torch.onnx.export(
            module,
            (torch.cat([image, image]),),
            dynamo=True,
            verbose=False,
            optimize=False,  # one of its rules makes a Clip of bounds that are no scalars
            opset_version=opset,
            input_names=["images"],
            dynamic_shapes=({0: batch},),
            custom_translation_table=dict(translated or {}),
        )
    assert program is not None
    model: ir.Model = program.model
    outputs = model.graph.outputs
    for number, output in enumerate(outputs):
        output.name = says if len(outputs) == 1 else f"{says}{number}"
    onnxscript.optimizer.optimize_ir(model)
    return model


def _store_integers(model: ir.Model) -> None:
    """Carry out the casts of constants to integer types, so that the constants themselves have them."""
    for node in list(model.graph):
        if node.op_type != "Cast":
            continue
        (source,) = node.inputs
        constant = None if source is None else ir.convenience.get_const_tensor(source)
        kind = ir.DataType(node.attributes["to"].as_int())
        if constant is None or kind not in _INTEGERS:
            continue
        value = node.outputs[0]
        stored = ir.tensor(constant.numpy().astype(kind.numpy()), dtype=kind, name=value.name)
        fresh = ir.Value(
            name=value.name,
            shape=ir.Shape(constant.shape),
            type=ir.TensorType(kind),
            const_value=stored,
        )
        model.graph.initializers[fresh.name or ""] = fresh
        ir.convenience.replace_all_uses_with(value, fresh)
        model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def _forget_origins(model: ir.Model) -> None:
    """Leave out what torch notes of each node's source lines, half a megabyte in a small model."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


_INTEGERS = (ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.UINT16)
