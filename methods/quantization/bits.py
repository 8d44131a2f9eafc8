"""Bit widths and bit tables: what "W4A4" means, site by site, as data."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.values import shown

FLOAT = 32
"""Number of bits that stands for "left in floating point"."""

MIN_BITS, MAX_BITS = 2, 8
"""Bounds of the bits of what is quantized."""

Granularity = Literal["tensor", "channel", "projection", "head", "token"]
"""How many scales a tensor has; see `TensorSpec`."""

Scheme: TypeAlias = str
"""Name of a quantizer form, lower-case kebab; `quantizers.registry.FORMS` has those that exist."""

ROUNDED_SCHEMES = ("uniform-power-of-two", "uniform-fixed-point")
"""Uniform forms whose scales are rounded to what integer hardware applies by shifts (`rounded_scales`)."""

Protocol = Literal["equal", "authors"]
"""Whose bit table: the common one of the benchmark, or that of a method's authors."""

LINEAR_ROLES = ("patch_embed", "qkv", "proj", "fc1", "fc2", "reduction", "head")
"""Layers with a weight, by their place in the network."""

OPERAND_ROLES = ("query", "key", "attention", "value")
"""Operands of the two matrix products of attention."""

WEIGHT_SITES = tuple(f"{role}.weight" for role in LINEAR_ROLES)

LINEAR_WEIGHTS = tuple(key for key in WEIGHT_SITES if key != "patch_embed.weight")
"""Weights but that of the patch embedding, which is a convolution."""

INPUT_SITES = tuple(f"{role}.input" for role in LINEAR_ROLES)

SITE_KEYS = WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES
"""Sites that every table has."""

DETECTOR_ROLES = ("neck", "rpn_head", "bbox_head", "mask_head")
"""Linear layers and convolutions of a detector behind its backbone, by the part they belong to."""

DETECTOR_KEYS = tuple(f"{role}.{kind}" for role in DETECTOR_ROLES for kind in ("weight", "input"))

OPTIONAL_KEYS = ("norm.input", *DETECTOR_KEYS)
"""Sites that a table may leave out: they are in floating point then, and models have no quantizer there."""

Scope = Literal["backbone", "full"]
"""What of a detector is quantized."""


MIXED = ":mixed"
"""Behind a bit width: so many bits on average, not at every site."""

KINDS = ("weight", "activation")
"""Of what is quantized: stored once, or there for every image."""

ALLOCATION = 2
"""Version of `allocation.mixed.mixed_table`; raise it whenever the tables that it finds change."""


@dataclass(frozen=True)
class BitWidth:
    """Weight bits and activation bits, each 2 to 8, or 32 for floating point.

    Attributes:
        weight, activation: the bits; where ``mixed`` their mean over stored values.
        mixed: bits are shared out among the sites of single operations.
    """

    weight: int
    activation: int
    mixed: bool = False

    def __post_init__(self) -> None:
        for kind, bits in (("weight", self.weight), ("activation", self.activation)):
            check_bits(bits, f"{kind} bits")
        if self.mixed and self.weight == self.activation == FLOAT:
            raise MethodError(f"{self}: nothing is quantized, so there are no bits to share out")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``W4A4``, ``W4A8``, ``W4A32`` or ``W4A4:mixed``: a bit width has this one spelling.

        Raises:
            MethodError: the text is not of that form, or a number is out of range.
        """
        pattern = (
            r"W(0|[1-9][0-9]?)A(0|[1-9][0-9]?)(:mixed)?"  # [0-9]: \d matches Arabic digits too
        )
        match = re.fullmatch(pattern, text) if isinstance(text, str) else None
        if match is None:
            raise MethodError(
                f"{shown(text)} is not a bit width; write it like W4A4, W4A8 or W4A32, or like "
                "W4A4:mixed for the same bits on average"
            )
        return cls(int(match[1]), int(match[2]), match[3] is not None)

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}{MIXED if self.mixed else ''}"


def check_bits(bits: int, what: str) -> None:
    """Raise `MethodError` unless ``bits`` is 2 to 8 or 32, as an `int`: 4.0 would be another identity."""
    if type(bits) is not int:
        raise MethodError(f"{what} must be a whole number; got {shown(bits)}")
    if bits != FLOAT and not MIN_BITS <= bits <= MAX_BITS:
        raise MethodError(
            f"{what} must be {MIN_BITS} to {MAX_BITS}, or {FLOAT} for floating point; got {shown(bits)}"
        )


def check_name(name: object, what: str) -> None:
    """Raise `MethodError` unless ``name`` is lower-case kebab, like ``log-sqrt2``."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise MethodError(f"{what} must be lower-case kebab, like 'log-sqrt2'; got {shown(name)}")


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is represented.

    Attributes:
        bits: 2 to 8, or 32 for floating point.
        granularity: how many scales: one (``tensor``), one per weight output channel or per
            activation channel (``channel``), one each for the query, key and value rows of a qkv
            weight (``projection``), per attention head (``head``), per row (``token``).
        symmetric: signed codes and no zero point (uniform forms only).
        dynamic: the range is taken from each tensor at run time instead of being calibrated.
        scheme: the form of the quantizer, by the name it is registered under.

    Raises:
        MethodError: a value is not of the form above. Whether a form of that name exists is asked when the
            quantizer is built: bit tables do without torch.
    """

    bits: int
    granularity: Granularity = "tensor"
    symmetric: bool = False
    dynamic: bool = False
    scheme: Scheme = "uniform"

    def __post_init__(self) -> None:
        check_bits(self.bits, "bits")
        check_name(self.scheme, "scheme")
        for name in ("symmetric", "dynamic"):
            if type(getattr(self, name)) is not bool:  # 1 would be another identity than True
                raise MethodError(f"{name} must be a bool; got {shown(getattr(self, name))}")
        known = get_args(Granularity)
        if self.granularity not in known:
            raise MethodError(
                f"granularity {shown(self.granularity)} is unknown; known: {', '.join(known)}"
            )
        if self.granularity == "token" and not self.dynamic:
            raise MethodError("granularity 'token' needs dynamic = true: tokens differ per image")

    @property
    def is_float(self) -> bool:
        """Whether the tensor is left in floating point."""
        return self.bits == FLOAT

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data."""
        return {f.name: getattr(self, f.name) for f in _SPEC_FIELDS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; raises `MethodError` on an unknown field."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown or "bits" not in data:
            raise MethodError(f"a tensor spec has no field {sorted(unknown)}; bits is required")
        return cls(**data)


_SPEC_FIELDS = fields(TensorSpec)


AT = "@"
"""Between a site's key and the operation that an entry of a bit table is for alone."""


def of_one(key: str, operation: str) -> str:
    """Return the key of a table's entry for one operation's site: ``fc2.input@blocks.3.mlp.fc2``."""
    return f"{key}{AT}{operation}"


def role_of(key: str) -> str:
    """Return the site key of a table's entry, without the operation that it is for alone."""
    return key.partition(AT)[0]


class BitTable(Mapping[str, TensorSpec]):
    """Site key -> `TensorSpec`, for all keys of `SITE_KEYS` and some of `OPTIONAL_KEYS`; immutable.

    An entry ``key@operation`` (`of_one`) stands for that operation's site in place of the entry ``key``;
    whether a model has such an operation is asked when it is wrapped. An entry equal to that of its key says
    nothing and is left out.

    Raises:
        MethodError: a key is missing, unknown, or of one operation without an entry for all.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        known = SITE_KEYS + OPTIONAL_KEYS
        own = [key for key in specs if AT in key]
        missing = set(SITE_KEYS) - set(specs)
        unknown = set(specs) - set(known) - {key for key in own if role_of(key) in known}
        unknown |= {key for key in own if not key.partition(AT)[2]}
        if missing or unknown:
            raise MethodError(f"bit table: missing {sorted(missing)}, unknown {sorted(unknown)}")
        absent = sorted(key for key in own if role_of(key) not in specs)
        if absent:
            raise MethodError(f"bit table: {absent} of one operation, without an entry for all")
        self._specs = {key: specs[key] for key in known if key in specs}
        self._specs |= {key: specs[key] for key in sorted(own) if specs[key] != specs[role_of(key)]}

    def __getitem__(self, key: str) -> TensorSpec:
        return self._specs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def of(self, key: str, operation: str) -> TensorSpec:
        """Return the entry for the site ``key`` of one operation: its own, or that of all."""
        return self._specs.get(of_one(key, operation), self._specs[key])

    @property
    def own(self) -> dict[str, TensorSpec]:
        """The entries for one operation alone."""
        return {key: spec for key, spec in self._specs.items() if AT in key}

    def change(self, keys: str | Iterable[str], **changes: Any) -> "BitTable":
        """Return a table in which the named sites have other fields.

        A site left in floating point, or left out, stays so unless ``bits`` is among the changes. A key
        changes the entries for one operation with it; ``key@operation`` changes that operation's alone, which
        gets an entry of its own.
        """
        names = {keys} if isinstance(keys, str) else set(keys)
        unknown = {name for name in names if role_of(name) not in SITE_KEYS + OPTIONAL_KEYS}
        if unknown:
            raise MethodError(f"a bit table has no site {sorted(unknown)}")
        specs = dict(self)
        for name in sorted(names, key=lambda name: AT in name):
            if role_of(name) not in specs and not (name in OPTIONAL_KEYS and "bits" in changes):
                continue
            before = specs.get(name, specs.get(role_of(name), TensorSpec(FLOAT)))
            specs[name] = _changed(before, changes)
            for one in [one for one in specs if one.startswith(f"{name}{AT}")]:
                specs[one] = _changed(specs[one], changes)
        return BitTable(specs)

    def with_scope(self, scope: str) -> "BitTable":
        """Return the table for a detector: ``full`` adds neck and heads, ``backbone`` nothing.

        Weights there have one scale per output channel and inputs one per tensor, with the bits, symmetry and
        (static or dynamic) of the blocks' ``fc1``; the quantizers are uniform, with scales rounded as those
        of ``fc1`` are (`ROUNDED_SCHEMES`).

        Raises:
            MethodError: another scope.
        """
        if scope not in get_args(Scope):
            raise MethodError(f"unknown scope {scope!r}; use {' or '.join(get_args(Scope))}")
        if scope == "backbone":
            return self
        weight, given = self["fc1.weight"], self["fc1.input"]
        specs = {
            "weight": TensorSpec(weight.bits, "channel", weight.symmetric, scheme=_rounded(weight)),
            "input": TensorSpec(
                given.bits, "tensor", given.symmetric, given.dynamic, _rounded(given)
            ),
        }
        return BitTable(dict(self) | {key: specs[key.split(".")[1]] for key in DETECTOR_KEYS})

    @property
    def scope(self) -> Scope:
        """What of a detector the table quantizes."""
        return "full" if DETECTOR_KEYS[0] in self else "backbone"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the table as JSON-ready data."""
        return {key: spec.to_dict() for key, spec in self.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, Any]]) -> "BitTable":
        """Inverse of `to_dict`; raises `MethodError` on missing or unknown sites or fields."""
        return cls({key: TensorSpec.from_dict(spec) for key, spec in data.items()})


def _rounded(spec: TensorSpec) -> Scheme:
    return spec.scheme if spec.scheme in ROUNDED_SCHEMES else "uniform"


def _changed(spec: TensorSpec, changes: Mapping[str, Any]) -> TensorSpec:
    if spec.is_float and "bits" not in changes:
        return spec
    return replace(spec, **changes)


def equal_table(bits: BitWidth) -> BitTable:
    """Return the common table of the benchmark, the setting RepQ-ViT and its followers report in.

    Every weight per output channel and every activation per tensor, affine and static; the image
    that enters the patch embedding has 8 bits (it has no more to begin with); LayerNorm, softmax,
    GELU, residual additions and biases stay in floating point.
    """
    weight = TensorSpec(bits.weight, "channel") if bits.weight != FLOAT else TensorSpec(FLOAT)
    activation = TensorSpec(bits.activation)
    specs = dict.fromkeys(WEIGHT_SITES, weight) | dict.fromkeys(
        INPUT_SITES + OPERAND_ROLES, activation
    )
    if not activation.is_float:
        specs["patch_embed.input"] = TensorSpec(8)
    return BitTable(specs)
