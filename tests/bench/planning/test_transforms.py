"""The setting ``transforms`` of suites: what it is called, what it makes, and a run from end to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.toys import records
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.plan import Run, build_plan
from vit_ptq_bench.bench.planning.suite import read_suite
from vit_ptq_bench.tasks.api.options import TaskOptions

MINE = """\
task = "fashion"
models = ["vit_mini"]
methods = ["gptq"]
bits = ["W4A4"]

[parameters.gptq]
damping = 0.1
transforms = ["centre-keys"]

[variants.gptq.plain]
transforms = []

[variants.gptq.common]

[variants.gptq.rotated]
transforms = [
    "rotate-heads",
    "rotate-residual",
]
"""


def plan(folder: Path, text: str) -> dict[str, Run]:
    path = folder / "mine.toml"
    path.write_text(text)
    return {run.title: run for run in build_plan(read_suite(path), TaskOptions())}


def test_a_variant_has_its_own_transforms_or_the_common_ones(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    found = {title: run.spec.method.transforms for title, run in runs.items()}
    assert found == {
        "fp32": (),
        "gptq plain": (),
        "gptq common": ("centre-keys",),
        "gptq rotated": ("rotate-heads", "rotate-residual"),
    }
    assert all("transforms" not in run.spec.method.parameters for run in runs.values())
    assert {run.spec.method.parameters.get("damping") for run in runs.values()} == {None, 0.1}


def test_without_transforms_a_run_has_the_identity_that_it_always_had(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    bare = re.sub(r'(?s)transforms = \["centre.*', "", MINE)
    assert plan(tmp_path, bare)["gptq"].run_id == runs["gptq plain"].run_id
    other = plan(tmp_path, MINE.replace('"rotate-residual"', '"shift-norms"'))
    assert other["gptq rotated"].run_id != runs["gptq rotated"].run_id
    assert other["gptq common"].run_id == runs["gptq common"].run_id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"rotate-residual"',
            '"rotate-residuals"',
            "mine.toml:18: variants.gptq.rotated.transforms: unknown transform 'rotate-residuals'; "
            "did you mean 'rotate-residual'",
        ),
        (
            '"rotate-residual"',
            '"rotate-heads"',
            "mine.toml:16: variants.gptq.rotated.transforms: the transform 'rotate-heads' stands there "
            "twice",
        ),
        (
            '["centre-keys"]',
            '"centre-keys"',
            "mine.toml:8: parameters.gptq.transforms: transforms must be a list of names; "
            "got 'centre-keys'",
        ),
        (
            '["centre-keys"]',
            "[3]",
            "mine.toml:8: parameters.gptq.transforms: transforms must be a list",
        ),
        (
            "transforms = []",
            "transform = []",
            "mine.toml:11: variants.gptq.plain.transform: gptq has no parameter 'transform'; did you "
            "mean 'transforms'",
        ),
        (
            "[parameters.gptq]",
            '[parameters.fp32]\ntransforms = ["centre-keys"]\n[parameters.gptq]',
            "mine.toml:7: parameters.fp32.transforms: fp32 is the model as it is",
        ),
        (
            "[variants.gptq.common]",
            '[variants.gptq.common]\n[variants.gptq.again]\ntransforms = ["centre-keys"]',
            "mine.toml:14: variants.gptq.again: has the same settings as variant 'common'",
        ),
    ],
)
def test_mistakes_are_shown_where_they_stand(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert MINE.count(old) == 1
    with pytest.raises(BenchError) as caught:
        plan(tmp_path, MINE.replace(old, new))
    assert message in str(caught.value)


def test_a_transformed_run_from_suite_to_saved_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "mine.toml"
    head, _, rotated = MINE.partition("[parameters.gptq]")
    rotated = rotated[rotated.index("[variants.gptq.rotated]") :]
    path.write_text((head + rotated).replace("gptq", "minmax"))
    words = ["--limit", "40", "--save-models"]
    assert main(["run", str(path), *words]) == 0
    found = {record["variant"]: record for record in records("output/mine").values()}
    assert [found[variant]["status"] for variant in (None, "rotated")] == ["ok", "ok"]
    record = found["rotated"]
    assert record["spec"]["method"]["transforms"] == ["rotate-heads", "rotate-residual"]
    capsys.readouterr()
    models = folder / "output/mine/models/fashion/vit_mini"
    file = models / f"{record['run_id']}.safetensors"
    assert main(["evaluate", str(file), "--limit", "40"]) == 0
    assert f"top1 {record['metrics']['top1']:.2f}" in capsys.readouterr().out
    assert main(["show", record["run_id"], "--results", "output/mine"]) == 0
    assert "transformed first: rotate-heads, then rotate-residual" in capsys.readouterr().out
    table = (folder / "output/mine/leaderboard.md").read_text()
    assert "transformed first: rotate-heads, then rotate-residual" in table
    assert main(["run", str(path), *words, "--dry-run"]) == 0
    assert "0 of 2 runs would run" in capsys.readouterr().out
