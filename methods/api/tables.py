"""Bit tables of authors that several methods take over."""

from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    INPUT_SITES,
    LINEAR_WEIGHTS,
    OPERAND_ROLES,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    equal_table,
)

TWIN_SCHEMES = {"attention": "twin-softmax", "fc2.input": "twin-gelu"}
"""The sites that PTQ4ViT quantizes in two ranges."""


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
