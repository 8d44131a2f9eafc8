"""Formulas of pages: LaTeX becomes MathML, which browsers draw without a program or a network.

A Sphinx extension, named in ``docs/conf.py``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from vit_ptq_bench.bench.errors import BenchError


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer ``mathml`` with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML; ``display`` is ``inline`` or ``block``.

    Raises:
        BenchError: it is no LaTeX, or uses a command that is not known.
    """
    try:
        text: str = convert(latex.strip(), display=display)
    except Exception as error:  # the library has a dozen of its own, without a common ancestor
        raise BenchError(f"cannot draw the formula {latex!r}: {error!r}") from error
    if "<mtext>\\" in text or "<mi>\\" in text:
        raise BenchError(f"cannot draw the formula {latex!r}: it has a command that is not known")
    return text


def _inline(translator: Any, node: Any) -> NoReturn:
    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def _block(translator: Any, node: Any) -> NoReturn:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode
