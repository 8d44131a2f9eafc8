"""Which of our rows do not compare with the others, by the words of published figures."""

from __future__ import annotations

import pytest

from tests.bench.report.test_tables import nothing
from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.report.classes import CLASSES, classes_of
from vit_ptq_bench.bench.report.latex import render_latex
from vit_ptq_bench.bench.report.leaderboard import to_csv
from vit_ptq_bench.bench.report.machine import leaderboard_json
from vit_ptq_bench.bench.report.markdown import render
from vit_ptq_bench.bench.report.page.html import render_page
from vit_ptq_bench.bench.report.tables import tables


def changed(site: str, **changes: object) -> dict[str, object]:
    return {**TABLE, site: {**TABLE["attention"], **TABLE.get(site, {}), **changes}}


@pytest.mark.parametrize(
    ("classes", "known"),
    [
        ((), {}),
        ((), {"method": "qwt", "parameters": {"form": "weights"}}),
        ((), {"table": changed("attention", scheme="log")}),
        ((), {"table": changed("patch_embed.input", bits=32)}),
        (("float-layers",), {"method": "qwt"}),
        (("float-layers",), {"method": "qwt", "parameters": {"form": "layer"}}),
        (("dynamic",), {"table": changed("attention", dynamic=True)}),
        (("dynamic",), {"table": changed("attention", scheme="instance-token-groups")}),
        (("fewer-sites",), {"table": changed("attention", bits=32)}),
        (("more-sites",), {"table": changed("norm.input")}),
        (("transformed",), {"transforms": ("rotate-heads",)}),
        ((), {"status": "failed"}),
        ((), {"fidelity": "reference", "table": changed("attention", bits=32)}),
    ],
    ids=str,
)
def test_classes_follow_from_what_ran(classes: tuple[str, ...], known: dict[str, object]) -> None:
    found = classes_of(make_record(**known))  # type: ignore[arg-type]
    assert found == classes and set(found) <= set(CLASSES)


def test_every_form_marks_them() -> None:
    records = [
        make_record(method=name, value=v) for name, v in (("a", 80.0), ("b", 79.9), ("c", 50.0))
    ]
    records.append(make_record(method="qwt", value=85.0))
    found = tables(records, nothing)
    text = render(records, found, ())
    answers = text.split("## Which method to use")[1].split("\n## ")[0]
    (answer,) = [line for line in answers.splitlines() if line.startswith("| vit_mini")]
    assert "| a " in answer and "besides qwt †" in answer
    assert CLASSES["float-layers"] in answers and "does not compare: float-layers" in text
    assert "| qwt † " in text.split("<details>")[-1]
    page = render_page(records, found, ()).split("<script>")[0]
    assert 'qwt <abbr title="does not compare: float-layers">†</abbr>' in page
    assert CLASSES["float-layers"] in page
    latex = render_latex(found)
    assert "qwt\\textsuperscript{\\dag} & 85.0" in latex and CLASSES["float-layers"] in latex
    data = leaderboard_json(records, found, ())
    (choice,) = data["choices"]
    assert (choice["best"], choice["besides"]) == ("a", ["qwt"])
    assert {row["label"]: row["classes"] for row in data["rows"]}["qwt"] == ("float-layers",)
    assert ",float-layers\n" in to_csv(records, found)


def test_without_them_nothing_is_marked() -> None:
    records = [make_record(method=name) for name in "abc"]
    found = tables(records, nothing)
    assert "†" not in render(records, found, ()) and "dag" not in render_latex(found)
    assert "†" not in render_page(records, found, ()).split("<script")[0]
