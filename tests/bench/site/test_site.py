"""The site is built from this repository without a warning, and needs no network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.site.__main__ import main
from vit_ptq_bench.bench.site.sources import write_sources

ROOT = Path(__file__).parents[3]


class Loads(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag in ("script", "img", "iframe"):
            self.found.append(named.get("src") or "")
        elif tag == "link" and "stylesheet" in (named.get("rel") or ""):
            self.found.append(named.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site; a single warning of Sphinx would fail here."""
    folder = tmp_path_factory.mktemp("site")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([str(folder)]) == 0
    assert Path.cwd() == before
    return folder


def test_every_method_and_every_leaderboard_has_a_page(site):
    for name, cls in registry.methods().items():
        if cls.__module__.startswith("vit_ptq_bench.methods."):
            page = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
            assert "In this benchmark" in page and "Convention" in page
    for path in (ROOT / "results").rglob("index.html"):
        here = site / path.relative_to(ROOT)
        assert here.read_bytes() == path.read_bytes()
        assert here.with_name("leaderboard.html").is_file()


def test_figures_of_the_page_are_those_of_the_leaderboard(site):
    """Read from both as text: the row of the leaderboard's CSV, and the cell of the page."""
    import pandas as pd

    frame = pd.read_csv(ROOT / "results" / "leaderboard.csv")
    rows = frame[
        (frame.method == "repq-vit") & (frame.model == "vit_mini") & (frame.bits == "W4A4")
    ]
    rows = rows[rows.calibration_source.isna()]  # those on made images have a table of their own
    value = rows[(rows.task == "fashion") & (rows.protocol == "equal")].value.mean()
    page = (site / "methods" / "repq-vit.html").read_text(encoding="utf-8")
    row = re.search(r"<td><p>vit_mini</p></td>(.*?)</tr>", page, re.DOTALL)[1]
    assert f"{value:.1f}" in row


def test_formulas_are_drawn_and_nothing_is_fetched(site):
    assert "<math" in (site / "methods" / "repq-vit.html").read_text(encoding="utf-8")
    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        assert not [one for one in loads.found if one.startswith(("http", "//"))], path


def test_a_method_without_a_page_is_named(tmp_path):
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    for path in (ROOT / "docs" / "methods").glob("*.md"):
        if path.stem != "gptq":
            (tmp_path / "docs" / "methods" / path.name).write_text(path.read_text())
    with pytest.raises(BenchError, match="one page for each method; see gptq"):
        write_sources(tmp_path, tmp_path / "pages")


def test_elsewhere_than_in_a_clone_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "from a clone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
