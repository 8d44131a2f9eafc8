"""How family adapters note what writes and reads a residual stream."""

from __future__ import annotations

from typing import Any

from torch import nn

from vit_ptq_bench.methods.quantization.model.structure import (
    Layer,
    Padding,
    ResidualStream,
    StreamReader,
    StreamWriter,
    Structure,
)


class StreamNotes:
    """What is known of one stream so far."""

    def __init__(self, stage: int, width: int) -> None:
        self.stage, self.width = stage, width
        self._writers: list[StreamWriter] = []
        self._tokens: list[nn.Parameter] = []
        self._readers: list[StreamReader] = []
        self._why_fixed: list[str] = []

    def written_by(self, layer: Layer, scaling: Any = None) -> None:
        """Note a layer that adds its outputs, times ``scaling`` or its ``gamma`` (LayerScale) if any."""
        factors = scaling if isinstance(scaling, nn.Parameter) else getattr(scaling, "gamma", None)
        self._writers.append(StreamWriter(layer, factors))

    def holds(self, *tokens: nn.Parameter | None) -> None:
        """Note parameters [..., C] that are added or put beside the tokens; None is none."""
        self._tokens += [parameter for parameter in tokens if parameter is not None]

    def read_by(
        self, norm: nn.Module | None, *layers: Layer, name: str, padding: Padding | None = None
    ) -> None:
        """Note the layers behind ``norm``, called ``name``; None or an identity is no norm."""
        self._read(StreamReader(self._checked(norm, name), layers, padding))

    def merged_by(self, merging: Any, name: str, interleaved: bool) -> None:
        """Note a patch merging: concatenation, ``norm``, ``reduction``; see `StreamReader`."""
        layer = merging.reduction
        tokens = layer.weight.shape[1] // self.width
        norm = self._checked(merging.norm, f"{name}.norm")
        self._read(StreamReader(norm, (layer,), None, tokens, interleaved))

    def fixed(self, why: str) -> None:
        """Note in words that the channels cannot be mixed."""
        self._why_fixed.append(why)

    def end(self, structure: Structure) -> None:
        """Add the stream to ``structure``, or why it stays as it is."""
        structure.writers += self._writers
        if self._why_fixed:
            structure.fixed_streams.append(f"stage {self.stage + 1}: {'; '.join(self._why_fixed)}")
            return
        found = tuple(self._writers), tuple(self._tokens), tuple(self._readers)
        structure.streams.append(ResidualStream(self.stage, self.width, *found))

    def _read(self, reader: StreamReader) -> None:
        self._readers.append(reader)

    def _checked(self, norm: nn.Module | None, name: str) -> nn.LayerNorm | None:
        if norm is None or isinstance(norm, nn.Identity):
            return None
        if not isinstance(norm, nn.LayerNorm):
            self.fixed(f"{name} is a {type(norm).__name__}, not a LayerNorm")
            return None
        return norm
