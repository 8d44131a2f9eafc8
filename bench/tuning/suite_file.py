"""The suite of what a search has found, which `bench run` carries out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vit_ptq_bench.bench.tuning.space import Configuration
from vit_ptq_bench.methods.quantization.bits import BitWidth

LABEL = "tuned"
"""Of the variant."""


def suite_name(methods: Iterable[str], model: str, bits: str) -> str:
    """Return a name for suite and folder: letters, digits, dots, dashes and underscores."""
    name = "-".join(["tune", *methods, model, bits])
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:100]


def suite_text(configuration: Configuration, words: str, facts: Mapping[str, Any]) -> str:
    """Return a suite of one run, with the configuration's settings as the variant `LABEL`.

    Args:
        configuration: the method and its settings.
        words: how they were found, a sentence.
        facts: ``task``, ``model``, ``bits``, ``seed``, and ``scope`` or None.
    """
    method = configuration.method
    bits = BitWidth.parse(facts["bits"])
    bits = replace(bits, mixed=configuration.mixed or bits.mixed)
    keys: dict[str, Any] = {
        "name": suite_name([method], facts["model"], facts["bits"]),
        "description": words,
        "task": facts["task"],
        "models": [facts["model"]],
        "methods": [method],
        "bits": [str(bits)],
        "protocols": [configuration.protocol],
        "seeds": [facts["seed"]],
    }
    if configuration.images:
        keys["calibration_images"] = configuration.images
    if facts["scope"] is not None:
        keys["scopes"] = [facts["scope"]]
    lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
    lines += ["", f"[variants.{method}.{LABEL}]"]
    lines += [f"{key} = {_toml(value)}" for key, value in configuration.settings.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Strings, whole numbers, truth values and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
