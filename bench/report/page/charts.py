"""The charts of the page as Vega-Lite; the page gives them the rows."""

from __future__ import annotations

from typing import Any

import altair as alt

HEIGHT = 360

EFFECT_WIDTH = 420
"""Of a small chart, without the names at its side."""

FIT = alt.AutoSizeParams(type="fit", contains="padding")
"""Axes and their titles lie inside of the chart's size."""

FRONT, OTHER = "#c2410c", "#94a3b8"
"""Colours of points on the Pareto front and of the others; both are seen on light and dark."""


def charts() -> dict[str, dict[str, Any]]:
    """Return chart -> specification; each draws the data set ``rows``.

    The fields of a row are those of `data.page_data`, with ``bits`` and ``weight_bits`` of its cell.
    """
    return {
        "bits": _over_bits().to_dict(),
        "seconds": _over_cost("seconds", "calibration, s", logarithmic=True).to_dict(),
        "size": _over_cost("size", "saved model, MB", logarithmic=False).to_dict(),
        "variants": _variants().to_dict(),
        "effects": _effects().to_dict(),
    }


def _accuracy() -> alt.Y:
    return alt.Y("value:Q", title="accuracy, %").scale(zero=False)


def _tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("bits:N"),
        alt.Tooltip("value:Q", title="%", format=".2f"),
        alt.Tooltip("rank:Q"),
        alt.Tooltip("seconds:Q", title="calibration s", format=".1f"),
        alt.Tooltip("size:Q", title="MB", format=".2f"),
    ]


def _over_bits() -> alt.LayerChart:
    """A line per method over the bit widths of one model; the one under the pointer stands out."""
    near = alt.selection_point(
        name="near", fields=["label"], on="pointerover", nearest=True, empty=False
    )
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("bits:N", title="bits", sort=alt.EncodingSortField("weight_bits")).axis(
            labelAngle=0
        ),
        y=_accuracy(),
        detail="label:N",
    )
    lines = base.mark_line().encode(
        color=alt.when(near).then(alt.value(FRONT)).otherwise(alt.value(OTHER)),
        opacity=alt.when(near).then(alt.value(1.0)).otherwise(alt.value(0.45)),
        size=alt.when(near).then(alt.value(3)).otherwise(alt.value(1)),
    )
    points = base.mark_point(filled=True, size=50).encode(
        color=alt.when(near).then(alt.value(FRONT)).otherwise(alt.value(OTHER)), tooltip=_tips()
    )
    chart: alt.LayerChart = (lines + points.add_params(near)).properties(
        width="container", height=HEIGHT, autosize=FIT
    )
    return chart


def _variants() -> alt.LayerChart:
    """A point with its 95 % interval per form of one method, the best first."""
    chart: alt.LayerChart = _intervals(
        alt.Chart(alt.NamedData("rows")), "label", "accuracy, %"
    ).properties(width="container", autosize=FIT)
    return chart


def _effects() -> alt.FacetChart:
    """What each part of a factorial gives, a small chart for each kind of gain."""
    layers = _intervals(alt.Chart(), "parts", "points") + alt.Chart().mark_rule(
        color=OTHER, strokeDash=[2, 2]
    ).encode(x=alt.datum(0))
    header = alt.Header(labelOrient="top", labelAnchor="start")
    chart: alt.FacetChart = (
        layers.properties(width=EFFECT_WIDTH)
        .facet(row=alt.Row("kind:N", title=None, header=header), data=alt.NamedData("rows"))
        .resolve_scale(y="independent")
    )
    return chart


def _intervals(base: alt.Chart, name: str, title: str) -> alt.LayerChart:
    """Points with lines from ``low`` to ``high``, one below the other by ``name``."""
    y = alt.Y(f"{name}:N", title=None, sort=alt.EncodingSortField("value", order="descending"))
    tips = [alt.Tooltip(f"{key}:Q", format=".2f") for key in ("value", "low", "high")]
    lines = base.mark_rule(color=OTHER).encode(y=y, x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_point(filled=True, size=60, color=FRONT).encode(
        y=y,
        x=alt.X("value:Q", title=title).scale(zero=False),
        tooltip=[alt.Tooltip(f"{name}:N"), *tips],
    )
    both: alt.LayerChart = lines + points
    return both


def _over_cost(cost: str, title: str, logarithmic: bool) -> alt.LayerChart:
    """A point per method of one cell, the Pareto front as a line with names."""
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(zero=False)
    x = alt.X(f"{cost}:Q", title=title, scale=scale)
    on_front = f"datum.front.{cost}"
    base = alt.Chart(alt.NamedData("rows")).encode(x=x, y=_accuracy())
    points = base.mark_point(filled=True, size=60).encode(
        color=alt.when(on_front).then(alt.value(FRONT)).otherwise(alt.value(OTHER)), tooltip=_tips()
    )
    front = base.transform_filter(on_front)
    line = front.mark_line(color=FRONT, interpolate="step-after")
    names = front.mark_text(align="left", dx=6, dy=-6, color=FRONT).encode(text="label:N")
    chart: alt.LayerChart = (line + points + names).properties(
        width="container", height=HEIGHT, autosize=FIT
    )
    return chart
