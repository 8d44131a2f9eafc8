"""The page of a method says what the registry, the papers and the records say, and no more."""

from dataclasses import fields

import pytest

from tests.bench.report.test_tables import nothing
from tests.bench.samples import make_record
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.report.published import figures
from vit_ptq_bench.bench.report.tables import tables
from vit_ptq_bench.bench.site.method_page import method_page

METHODS = registry.methods()


def cells(text, first):
    """The cells of the table row that begins with ``first``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_setting_has_its_default_and_its_words(name):
    text = method_page(METHODS[name], "# Its title", [])
    assert text.startswith("# Its title\n")
    for field in fields(METHODS[name].Parameters):
        row = cells(text, f"`{field.name}`")
        assert row[1] == f"`{field.default}`"
        assert row[3], f"the docstring of {name}'s parameters says nothing of {field.name}"


def test_the_values_of_a_choice_are_named():
    text = method_page(METHODS["repq-vit"], "# X", [])
    assert cells(text, "`scale`")[2] == "`mean`, `median`"
    assert "attention: log-sqrt2" in text.split("### Convention")[1].split("###")[0]


def test_figures_are_the_means_of_the_records_with_ranks_and_costs():
    records = [
        make_record(method="repq-vit", seed=seed, value=value)
        for seed, value in enumerate((70.0, 74.0))
    ] + [make_record(method="minmax", value=60.0)]
    found = tables(records, nothing)
    text = method_page(METHODS["repq-vit"], "# X", [("some models", found)])
    section = text.split("## Figures: some models")[1]
    row = cells(section, records[0].spec.model.name)
    assert row[3] == "72.0 ± 2.8 (1 of 2 ~)"  # 70 and 74; deviation sqrt(8); no outcomes
    assert "`~`: some by 95 % intervals" in section
    assert row[2] == row[4] == ""  # no record at six and at three bits
    assert row[5] == f"{records[0].seconds['calibrate']:.0f}"
    others = method_page(METHODS["mgrq"], "# X", [("some models", found)])
    assert "## Figures" not in others


def test_rows_of_one_method_under_other_names_are_all_shown():
    """`qwt` has no row of its own name: its rows are `qwt ptq4vit` and `qwt repq-vit`."""
    records = [
        make_record(method="qwt", variant=base, parameters={"base": base}, value=value)
        for base, value in (("ptq4vit", 71.0), ("repq-vit", 74.0))
    ] + [make_record(method="minmax", value=60.0)]
    text = method_page(METHODS["qwt"], "# X", [("some models", tables(records, nothing))])
    section = text.split("## Figures: some models")[1]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| vit_mini")]
    shown = [[cell.strip() for cell in row[2:6]] for row in rows]
    assert shown == [
        ["qwt ptq4vit", "", "", "71.0 (2 of 3 ~)"],
        ["qwt repq-vit", "", "", "74.0 (1 of 3 ~)"],
    ]
    assert "| model    | row " in section
    assert "qwt" not in method_page(METHODS["minmax"], "# X", [("m", tables(records, nothing))])


def test_what_papers_report_stands_with_its_source_and_class():
    text = method_page(METHODS["repq-vit"], "# X", [])
    section = text.split("## What papers report")[1]
    row = next(line for line in section.splitlines() if "| DeiT-S " in line)
    wanted = [o for o in figures() if (o.method, o.short, o.bits) == ("repq-vit", "DeiT-S", "W4A4")]
    assert wanted and all(f"{one.value:.2f}" in row for one in wanted)
    assert "*transformed, granularity*" in row  # somebody ran it behind a rotation
    assert "RepQ-ViT README" in section
    released = method_page(METHODS["repq-vit-released"], "# X", [])
    assert released.split("## What papers report")[1] == section


def test_a_method_of_which_nothing_is_published_says_nothing():
    assert "## What papers report" not in method_page(METHODS["rose-uniform"], "# X", [])
