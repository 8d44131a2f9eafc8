"""Bit tables that several methods share."""

from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    INPUT_SITES,
    LINEAR_WEIGHTS,
    OPERAND_ROLES,
    SITE_KEYS,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    Scheme,
    equal_table,
)

TWIN_SCHEMES = {"attention": "twin-softmax", "fc2.input": "twin-gelu"}
"""The sites that PTQ4ViT quantizes in two ranges."""


SIGNED_SITES = tuple(
    key for key in SITE_KEYS if key not in ("patch_embed.input", "attention", "fc2.input")
)
"""Sites whose values lie on both sides of zero, but the picture."""

CODEBOOK_BITS = 8
"""Of the types that codebooks choose from: with as many there is nothing to choose."""

WITHOUT_CODEBOOK = {"attention": "log", "fc2.input": "offset-log"}
"""Forms that stand for codebooks of so many bits; elsewhere it is ``uniform``."""


def with_forms(table: BitTable, attention: Scheme, gelu: Scheme, levels: Scheme) -> BitTable:
    """Return ``table`` with a form for attention maps, one behind GELU, and one at all `SIGNED_SITES`.

    A codebook of `CODEBOOK_BITS` becomes the form of `WITHOUT_CODEBOOK`.
    """
    forms = {"attention": attention, "fc2.input": gelu} | dict.fromkeys(SIGNED_SITES, levels)
    for key, scheme in forms.items():
        if scheme.startswith("codebook") and table[key].bits >= CODEBOOK_BITS:
            scheme = WITHOUT_CODEBOOK.get(key, "uniform")
        table = table.change(key, scheme=scheme)
    return table


def twin_uniform_table(bits: BitWidth) -> BitTable:
    """Return the table of PTQ4ViT's published runs, uniform everywhere; `TWIN_SCHEMES` come on top.

    Symmetric; one scale per linear weight, of qkv one each for query, key and value; query, key and value
    per head; the image in floating point.
    """
    table = equal_table(bits).change(WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES, symmetric=True)
    table = table.change(LINEAR_WEIGHTS, granularity="tensor")
    table = table.change("qkv.weight", granularity="projection")
    table = table.change(("query", "key", "value"), granularity="head")
    return table.change("patch_embed.input", bits=FLOAT, symmetric=False)
