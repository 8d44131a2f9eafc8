"""The layout of a record's file as data, the check of it, and the way from older layouts to this one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vit_ptq_bench.bench.records.checks import (
    Check,
    amount,
    count,
    dict_of,
    list_of,
    mapping,
    object_of,
    optional,
    pair_of,
    percent,
    short,
    table,
    text,
    whole,
)

SCHEMA = 8
"""Version of the layout; raise it when a key is added, renamed or changes its meaning."""

STATUSES = ("ok", "failed", "oom", "timeout", "skipped")

_numbers = dict_of(optional(amount))
_percents = dict_of(optional(percent))

_machine = object_of(
    {
        "device_name": optional(text),
        "threads": optional(count),
        "torch": optional(text),
        "warnings": list_of(text),
    }
)
_error = object_of({"message": text, "traceback": list_of(text)})

FIELDS: dict[str, tuple[str, Check]] = {
    "run_id": ("a text", text),
    "spec": ("an object", mapping),
    "status": (f"one of {', '.join(STATUSES)}", STATUSES.__contains__),
    "fidelity": ("a text", text),
    "family": ("a text", text),
    "notes": ("a list of texts", list_of(text)),
    "common_differs": ("a bit table or null", optional(table)),
    "primary_metric": ("a text or null", optional(text)),
    "metric_titles": ("a list of pairs of texts", list_of(pair_of(text))),
    "outcomes_metric": ("a text or null", optional(text)),
    "data_notes": ("a list of texts", list_of(text)),
    "metrics": ("an object of percentages", _percents),
    "intervals": ("an object of pairs of percentages", dict_of(pair_of(optional(percent)))),
    "standard_errors": ("an object of numbers of at least 0", _numbers),
    "n": ("a whole number of at least 0, or null", optional(count)),
    "seconds": ("an object of numbers of at least 0", _numbers),
    "peak_memory_mb": ("a number of at least 0, or null", optional(amount)),
    "size_mb": ("a number of at least 0, or null", optional(amount)),
    "stored_bits": ("an object of numbers of at least 0", _numbers),
    "found_bits": ("an object of whole numbers, or null", optional(dict_of(count))),
    "costs": ("an object of objects of whole numbers", dict_of(dict_of(count))),
    "environment": (
        "an object whose device, threads, torch and warnings are what they say",
        _machine,
    ),
    "error": ("an object with a text 'message', or null", optional(_error)),
    "outcomes_sha256": ("a text or null", optional(text)),
    "model_sha256": ("a text or null", optional(text)),
    "started": ("a text or null", optional(text)),
    "finished": ("a text or null", optional(text)),
    "variant": ("a text or null", optional(text)),
    "schema": ("a whole number", whole),
}
"""Every key of a record: what it must be, in words and as a check."""

Json = dict[str, Any]


def upgraded(data: object) -> object:
    """Return ``data`` in the present layout; what is no record of a known one comes back as it is."""
    while isinstance(data, dict) and data.get("schema") in _UPGRADES:
        try:
            data = _UPGRADES[data["schema"]](data)
        except (AttributeError, KeyError, TypeError):  # `problem` says so
            return data
    return data


def _from_1(data: Json) -> Json:
    """Schema 1 had no ``variant``."""
    return {"variant": None} | data | {"schema": 2}


def _from_2(data: Json) -> Json:
    """Schema 2 had ``convention``, a sentence that told the bit table too, and no titles of metrics."""
    rest = {key: value for key, value in data.items() if key != "convention"}
    titles = _TITLES_2.get(data.get("primary_metric") or "", [])
    words = own_words(data["convention"] or "")
    return rest | {"notes": words, "metric_titles": titles, "schema": 3}


def _from_3(data: Json) -> Json:
    """Schema 3 said neither how data were read nor what outcomes tell, and had no checksums."""
    is_ours = data["spec"]["task"]["name"] in (
        "digits",
        "imagenet",
    )  # the bundled task of that time
    metric = "top1" if is_ours and data.get("primary_metric") == "top1" else None
    new: Json = {"outcomes_metric": metric, "data_notes": [], "model_sha256": None}
    if new.keys() & data.keys():
        raise KeyError("schema 3 has no such keys")
    return data | new | {"schema": 4}


def _from_4(data: Json) -> Json:
    """Schema 4 told the whole common table beside the spec's, and not what kind of method it is of."""
    own, common = data["spec"]["table"], data["common_table"]
    differs = None
    if common is not None:
        if common.keys() != own.keys():
            raise KeyError("the tables have not the same sites")
        differs = {site: spec for site, spec in common.items() if spec != own[site]}
    family = _FAMILIES_4.get(data["spec"]["method"]["name"], "other")
    new: Json = {"common_differs": differs, "family": family}
    if new.keys() & data.keys():
        raise KeyError("schema 4 has no such keys")
    rest = {key: value for key, value in data.items() if key != "common_table"}
    return rest | new | {"schema": 5}


def _from_5(data: Json) -> Json:
    """Schema 5 did not say how many bits are stored on average, nor knew methods that choose them."""
    new: Json = {"stored_bits": {}, "found_bits": None}
    if new.keys() & data.keys():
        raise KeyError("schema 5 has no such keys")
    return data | new | {"schema": 6}


def _from_6(data: Json) -> Json:
    """Schema 6 told the bit table site by site in its file too; the data are the same (`layout`)."""
    return data | {"schema": 7}


def _from_7(data: Json) -> Json:
    """Schema 7 did not say what an image costs in integers."""
    if "costs" in data:
        raise KeyError("schema 7 has no such key")
    return data | {"costs": {}, "schema": 8}


_UPGRADES: dict[object, Callable[[Json], Json]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
    5: _from_5,
    6: _from_6,
    7: _from_7,
}

_METHODS_4 = {
    "reference": "fp32",
    "calibration": "minmax percentile omse easyquant fq-vit ptq4vit ptq4vit-released apq-vit adalog "
    "dopq-vit igq-vit",
    "transformation": "smoothquant repq-vit repq-vit-released",
    "compensation": "gptq gptaq marr erq erq-released qwt rose rose-uniform",
    "reconstruction": "brecq qdrop pd-quant mgrq i-and-s-vit fima-q aphq-vit ls-vit glf-q lrquant "
    "lrquant-plus",
}
_FAMILIES_4 = {name: family for family, names in _METHODS_4.items() for name in names.split()}
"""The family of every method that there was before records said it."""

_TITLES_2 = {
    "top1": [["top5", "top5"]],
    "box_ap": [["mask_ap", "mask AP"], ["box_ap50", "box AP50"], ["box_ap75", "box AP75"]],
}
"""Titles of the metrics beside the first, by the first, as tables had them before records had them."""

_FROM_TABLE = re.compile(r"every site quantized$|static$|floating point: |dynamic: ")


def own_words(convention: str) -> list[str]:
    """Return the parts of a schema 2 convention that do not repeat the bit table."""
    parts = (" ".join(part.split()) for part in convention.split(";"))
    return [part for part in parts if part and not _FROM_TABLE.match(part)]


def problem(data: object) -> str | None:
    """Return what is wrong with ``data`` as the content of a record file; None when nothing is."""
    if not isinstance(data, dict):
        return "the file does not hold a JSON object"
    version = data.get("schema")
    if version in _UPGRADES:
        return f"schema is {version}, but the keys are not those of that layout"
    if version != SCHEMA:
        return f"schema is {version!r}, this program reads 1 to {SCHEMA}"
    return _keys(data) or _complete(data)


def _keys(data: Mapping[str, Any]) -> str | None:
    missing, unknown = sorted(set(FIELDS) - set(data)), sorted(set(data) - set(FIELDS))
    if missing:
        return f"missing: {', '.join(missing)}"
    if unknown:
        return f"unknown: {', '.join(unknown)}"
    for key, (kind, check) in FIELDS.items():
        if not check(data[key]):
            return f"{key} must be {kind}, not {short(data[key])}"
    return None


def _complete(data: Mapping[str, Any]) -> str | None:
    """An ok run has a primary metric, or it could not be ranked."""
    if data["status"] != "ok":
        return None
    if data["metrics"].get(data["primary_metric"]) is None:
        return f"status is ok, but there is no finite metric {data['primary_metric']!r}"
    return None if data["n"] else f"status is ok, but n is {data['n']}"
