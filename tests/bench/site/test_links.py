"""Links between pages lead to where the pages are on the site."""

import pytest

from vit_ptq_bench.bench.site.links import rewritten

TAKEN = {"README.md": "index.md", "results/leaderboard.md": "results/leaderboard.md"}


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("README.md", "index.md", "docs/data.md", "data.md"),
        ("docs/parts.md", "parts.md", "../README.md", "index.md"),
        ("docs/methods/a.md", "methods/a.md", "../../results/leaderboard.md", "../results/leaderboard.md"),
        ("docs/methods/a.md", "methods/a.md", "b.md", "b.md"),
        ("docs/methods/a.md", "methods/a.md", "../data.md#labels", "../data.md#labels"),
        ("docs/data.md", "data.md", "../tox.ini", "../tox.ini"),
        ("docs/data.md", "data.md", "https://example.org/docs/data.md", "https://example.org/docs/data.md"),
        ("docs/data.md", "data.md", "#labels", "#labels"),
    ],
)  # fmt: skip
def test_links_are_relative_to_the_page(source, page, link, expected):
    text = f"See [there]({link}), and (docs/data.md)."
    assert rewritten(text, source, page, TAKEN) == f"See [there]({expected}), and (docs/data.md)."
