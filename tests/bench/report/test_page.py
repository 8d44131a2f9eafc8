"""The page for a browser: what it holds, and, where there is a Chromium, what it does."""

import base64
import json
import re
import shutil
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.bench.report.test_tables import nothing
from tests.bench.samples import make_record
from vit_ptq_bench.bench.records.layout import by_site
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard, write_leaderboard
from vit_ptq_bench.bench.report.page.data import page_data
from vit_ptq_bench.bench.report.page.html import PACKED, packed, unpacked
from vit_ptq_bench.bench.report.tables import tables

HOSTILE = "<script>window.broken = 1</script> | =cmd() \u2028 </script>"


def fill(folder, *records):
    """Write records with outcomes that bear them out."""
    for record in records:
        outcomes = np.arange(100) < (record.value or 0)
        if record.ok:
            Store(folder).write(replace(record, n=100), outcomes)
        else:
            Store(folder).write(record)


RECORDS = [
    make_record(method="fp32", bits="W32A32", value=96.0, fidelity="reference", family="reference"),
    make_record(method="repq", value=90.0, family="transformation"),
    make_record(method="minmax", value=60.0, family="calibration"),
    make_record(method="repq", bits="W3A3", value=50.0, family="transformation"),
    make_record(method="minmax", bits="W3A3", value=10.0, family="calibration"),
    *(
        make_record(
            method="mgrq",
            variant=f"+{name}",
            parameters={"k": k},
            value=70.0 + k,
            family="reconstruction",
        )
        for k, name in enumerate(("one", "two"))
    ),
    make_record(method="omse", status="failed"),
]


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "link") and (values.get("src") or values.get("href")):
            self.found.append((tag, values.get("src") or values.get("href")))


@pytest.fixture
def page(tmp_path):
    fill(tmp_path, *RECORDS)
    write_leaderboard(tmp_path)
    return tmp_path / "index.html"


def test_the_page_fetches_nothing_and_is_the_same_each_time(page):
    text = page.read_text()
    parser = Outside()
    parser.feed(text)
    assert parser.found == [("link", "data:,")]
    assert make_leaderboard(page.parent).files["index.html"] == text


def test_the_answer_stands_in_the_page_without_a_program(page):
    text = page.read_text().split("<script>")[0]
    first = re.search(r'<section id="use".*?</section>', text, re.DOTALL)[0]
    assert "vit_mini W4A4" in first and "repq" in first and "90.0" in first and "96.0" in first


def test_every_record_is_in_the_page_whole():
    found = tables(RECORDS, nothing)
    data = json.loads(json.dumps(page_data(RECORDS, found)))
    for record in RECORDS:
        kept = data["records"][record.run_id]
        for part, keys in (
            (kept["spec"], data["folded"]["spec"]),
            (kept, data["folded"]["record"]),
        ):
            part |= {key: data["shared"][part[key]] for key in keys}
        assert kept == json.loads(json.dumps(record.to_dict()))
    assert {row["family"] for row in data["rows"]} >= {"calibration", "transformation", "reference"}


def test_what_is_packed_is_text_that_ends_no_script_and_comes_back():
    page = '<script type="text/plain" class="packed" id="data">{}</script>'
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed(HOSTILE))
    assert unpacked(page.format(packed(HOSTILE))) == page.format(HOSTILE)
    assert unpacked(page.format("?")) == page.format("?")


def test_a_page_packed_by_another_build_of_zlib_is_not_stale_but_another_one_is(page):
    made = make_leaderboard(page.parent)
    text = page.read_text()
    other = PACKED.sub(
        lambda match: match[1] + base64.b64encode(zlib.compress(content(match), 1)).decode(), text
    )
    page.write_text(other)
    assert other != text and made.stale() == []
    damaged = PACKED.sub(lambda match: match[0][:-40], text)
    for wrong in (
        text.replace("sort", "sart"),
        damaged,
        text.replace('id="data">', 'id="data">AA'),
    ):
        page.write_text(wrong)
        assert made.stale() == [page]


def content(match):
    return zlib.decompress(base64.b64decode(match[2]))


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No method has a result here."),
        ([make_record(status="failed")], "No method has a result here."),
        (
            [make_record(method="fp32", bits="W32A32", fidelity="reference")],
            "No method has a result here.",
        ),
        ([make_record(method="alone", value=70.0)], "of fewer than three"),
    ],
    ids=["none", "failures", "reference", "one method"],
)
def test_folders_that_say_little_have_pages_that_say_so(tmp_path, records, words):
    fill(tmp_path, *records)
    made = make_leaderboard(tmp_path)
    made.write()
    assert words in (tmp_path / "index.html").read_text()
    assert words in (tmp_path / "leaderboard.md").read_text()
    assert make_leaderboard(tmp_path).stale() == []


def test_a_hostile_record_is_shown_and_stops_nothing(tmp_path):
    fill(tmp_path, *RECORDS, make_record(method="evil", variant=HOSTILE, value=80.0))
    bad = Store(tmp_path).path(RECORDS[1]).with_name("0123456789abcdef.json")
    bad.write_text(HOSTILE)
    write_leaderboard(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "<script>window.broken" not in text
    assert "0123456789abcdef.json" in text.split('id="findings"')[1]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def opened(browser, path):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return Object.keys(views).length >= 3")
    )
    return browser


def labels_of(browser):
    cells = browser.find_elements("css selector", "#rows tbody th")
    return [cell.text for cell in cells]


def press(browser, selector):
    browser.execute_script("arguments[0].click()", browser.find_element("css selector", selector))


def choose(browser, name, value):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("name", name)).select_by_value(value)


def errors_of(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_table_sorts_and_filters(browser, page):
    opened(browser, page)
    assert browser.find_element("id", "count").text == "9 of 9 rows"
    assert labels_of(browser)[0] == "fp32"
    press(browser, 'th[data-key="value"] button')
    assert labels_of(browser)[0] == "minmax"
    assert (
        browser.find_element("css selector", 'th[data-key="value"]').get_attribute("aria-sort")
        == "ascending"
    )
    choose(browser, "bits", "W3A3")
    assert sorted(labels_of(browser)) == ["fp32", "minmax", "repq"]
    choose(browser, "family", "calibration")
    assert sorted(labels_of(browser)) == ["fp32", "minmax"]
    choose(browser, "family", "")
    browser.find_element("name", "search").send_keys("repq")
    assert labels_of(browser) == ["repq"]
    assert browser.find_element("id", "count").text == "1 of 9 rows"
    assert errors_of(browser) == []


def test_a_record_opens_with_the_command_that_repeats_it_and_closes_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    browser.find_element("name", "search").send_keys("minmax W4A4")
    press(browser, "#rows tbody td button")
    dialog = browser.find_element("id", "record")
    (minmax,) = [r for r in RECORDS if (r.spec.method.name, r.spec.bits) == ("minmax", "W4A4")]
    assert f"bench repeat {minmax.run_id} --results FOLDER" in dialog.text
    whole = browser.execute_script(f"return wholeRecord('{minmax.run_id}')")
    kept = by_site(json.loads(Store(page.parent).path(minmax).read_text()))
    kept.pop("checksum")
    assert whole == kept
    browser.find_element("css selector", "body").send_keys(Keys.ESCAPE)
    assert not browser.execute_script("return document.getElementById('record').open")
    assert errors_of(browser) == []


def test_charts_are_drawn_in_light_and_dark_and_on_a_phone(browser, page):
    opened(browser, page)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    for size, media in (((1280, 900), {"features": []}), ((390, 800), dark)):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.set_window_size(*size)
        marks = browser.find_elements("css selector", "#chart-bits svg path")
        assert len(marks) > 4
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0
    assert browser.find_element("id", "figure-variants").is_displayed()
    assert not browser.find_element("id", "figure-effects").is_displayed()
    assert errors_of(browser) == []


def test_a_page_of_nothing_is_no_error(browser, tmp_path):
    fill(tmp_path, make_record(status="failed"))
    write_leaderboard(tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    assert "No method has a result here." in browser.find_element("id", "use").text
    assert errors_of(browser) == []


def test_a_hostile_name_runs_nothing(browser, tmp_path):
    fill(tmp_path, make_record(method="evil", variant=HOSTILE, value=80.0), make_record(value=70.0))
    write_leaderboard(tmp_path)
    opened(browser, tmp_path / "index.html")
    assert browser.execute_script("return window.broken") is None
    assert any("<script>" in label for label in labels_of(browser))
