"""The suite of what a search has found, which `bench run` carries out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vit_ptq_bench.bench.tuning.space import Configuration

LABEL = "tuned"
"""Of the variant."""


def suite_name(method: str, model: str, bits: str) -> str:
    """Return a name for suite and folder: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", f"tune-{method}-{model}-{bits}", flags=re.ASCII)[:100]


def suite_text(
    method: str, configuration: Configuration, words: str, facts: Mapping[str, Any]
) -> str:
    """Return a suite of one run, with the configuration's parameters as the variant `LABEL`.

    Args:
        method: name of the method.
        configuration: its settings.
        words: how they were found, a sentence.
        facts: ``task``, ``model``, ``bits``, ``seed``, and ``scope`` or None.
    """
    keys: dict[str, Any] = {
        "name": suite_name(method, facts["model"], facts["bits"]),
        "description": words,
        "task": facts["task"],
        "models": [facts["model"]],
        "methods": [method],
        "bits": [facts["bits"]],
        "protocols": [configuration.protocol],
        "seeds": [facts["seed"]],
    }
    if configuration.images:
        keys["calibration_images"] = configuration.images
    if facts["scope"] is not None:
        keys["scopes"] = [facts["scope"]]
    lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
    lines += ["", f"[variants.{method}.{LABEL}]"]
    # None is a default, which TOML says by leaving the key out.
    own = {key: value for key, value in configuration.parameters.items() if value is not None}
    lines += [f"{key} = {_toml(value)}" for key, value in own.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Strings, whole numbers, truth values and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
