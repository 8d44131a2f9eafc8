"""JSON read strictly: what two readers could take differently, or no program can hold, is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vit_ptq_bench.values import object_of

LONGEST = 1 << 24
"""Bytes of the largest file that is read as one record; what a run writes has some ten thousand."""

_LARGEST = 1 << 63
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


class NotStrictJson(ValueError):
    """Bytes that are no JSON, or no JSON that has one meaning; the text says what is wrong."""


def parse(content: bytes) -> Any:
    """Return the data of a JSON text in UTF-8.

    Raises:
        NotStrictJson: no JSON; or a key that stands twice, NaN, infinity, a whole number of more than 64
            bits, half a character, too deep nesting, more than `LONGEST` bytes.
    """
    if len(content) > LONGEST:
        raise NotStrictJson(f"has {len(content)} bytes, {LONGEST} at most make sense")
    try:
        data = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=object_of,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except RecursionError:
        raise NotStrictJson("is nested too deeply") from None
    except ValueError as error:  # of which the decoders' errors are, too
        raise NotStrictJson(str(error)) from None
    if _SURROGATE.search(content) is not None:
        _refuse_half_characters(data)
    return data


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _whole(text: str) -> int:
    if len(text) > 20 or not -_LARGEST <= int(text) < _LARGEST:
        raise ValueError(f"the whole number {text[:30]}... has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value


def _refuse_half_characters(data: Any) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise NotStrictJson("has a text with half a character (a lone surrogate)") from None
