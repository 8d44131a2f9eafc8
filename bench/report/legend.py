"""The sentences of the pages that say how to read them."""

from __future__ import annotations

from collections.abc import Iterable

from vit_ptq_bench.bench.report.classes import MARK, in_words

LEGEND = """\
Figures are the task's first metric in percent with its 95 % interval; of several seeds the mean, the
standard deviation between them and their number. The 95 % interval of such a mean, on the first screen, in
the page for a browser, in LaTeX, JSON and CSV, has both parts: the standard error over images, of outcomes
averaged over the seeds, and what seeds differ by beyond that. Two methods are told apart by a paired test on
the same images: McNemar's over all seeds, an image as one unit, or for boxes and masks a bootstrap over
images; corrected for all pairs of a table (Holm, 5 % together). *Rank*: 1 and the number of methods that are
better beyond chance, and never less than that of a method with a higher figure, so methods that nothing tells
apart share one. `~` behind a rank: with some others there was no such test, and they are told apart where
the two 95 % intervals do not meet; `-`: not even that is known. *Drop*: what is lost against full precision.
*s*, *MB*: what calibration takes (wall time, memory at its peak); quantization is simulated in float32, so
neither is what inference would cost. *size*: MB of the saved quantized model. *run*: beginning of the run's
id, for `bench show`, and how many more seeds there are. Letters in *notes* are explained under *Footnotes*.
Protocol `equal` gives every method the same sites, bits, granularity and calibration images; `authors` gives
each its own. Of a detector the scope says what is quantized: its `backbone` alone, or also neck and heads
(`full`; the transposed convolution of the mask head stays in floating point). Rows of different protocols,
scopes, data or evaluation subsets never share a table."""

ANSWER = """\
*Best*: the highest figure, with its 95 % interval. *Like it*: not told apart from the best by a paired test
on the same images; `~`: for some of them there is no such test, and their 95 % intervals meet; `-`: not
known. *Cheapest*: of all these, the one that calibrates in the least time. Tables of fewer than three
methods, and those whose best keeps less than a quarter of full precision, give no answer."""

PLACES = """\
Ordered by the mean rank by figures within each cell (a model at a bit width; 1 is the best), for figures of
unlike cells have no mean. *Wins*: share of the others that a method is better than beyond chance. Intervals
are 95 %, over drawn sets of cells, where there are five or more."""

SHARED_OUT = """\
`:mixed` is a class of its own (mixed precision): bits differ from operation to operation and have the width
on average. `:more`: more is stored on average than the width says."""


def of_classes(classes: Iterable[str]) -> str:
    """Return what the mark beside names means, for the classes that a page has; empty without any."""
    words = in_words(classes)
    return (
        f"{MARK}: does not compare with the others and is never the answer. {words}."
        if words
        else ""
    )
