"""Sphinx's settings; the pages are put together by ``vit_ptq_bench.bench.site``."""

from pathlib import Path

from vit_ptq_bench.bench.site.sources import EXTRA

project = "ViT PTQ benchmark"
extensions = ["myst_parser", "vit_ptq_bench.bench.site.formulas"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"
html_theme = "furo"
html_title = project
html_static_path = [str(Path(__file__).with_name("_static"))]
html_css_files = ["site.css"]
html_show_sourcelink = False
exclude_patterns = [EXTRA]
