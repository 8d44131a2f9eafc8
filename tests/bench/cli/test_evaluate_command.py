"""`bench evaluate`: the figure of what was saved, or a sentence; and no program that a file names is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.bench.toys import FAKES, by_label, run, write_suite
from vit_ptq_bench.bench.cli import main

Change = Callable[[dict[str, Any]], None]


def evaluate(file: Path, *arguments: str) -> int:
    return main(["evaluate", str(file), "--plugin", str(FAKES), *arguments])


def edited(file: Path, out: Path, change: Change, table: Change = lambda table: None) -> Path:
    """A copy with another header, as release 0.1 wrote files: without a hash over the content."""
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    del header["sha256"]
    header["format"] = "vit-ptq-bench/1"
    for key, edit in (("metadata", change), ("table", table)):
        data = json.loads(header[key])
        edit(data)
        header[key] = json.dumps(data)
    save_file(load_file(file), out, metadata=header)
    return out


def both(key: str, value: str, *place: str) -> Change:
    """Change a fact and what the specification says of it."""

    def change(facts: dict[str, Any]) -> None:
        facts[key] = value
        part = facts["spec"]
        for name in place[:-1]:
            part = part[name]
        part[place[-1]] = value

    return change


def drop_spec(facts: dict[str, Any]) -> None:
    del facts["spec"]


def test_what_a_file_says_of_itself_is_held_against_its_parts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--save-models") == 0
    record = by_label()["toy_a toy-plain W4A4"]
    file = Path(f"output/toy/models/toy/toy_a/{record['run_id']}.safetensors")
    assert record["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    figure = f"top1 {record['metrics']['top1']:.2f}"
    capsys.readouterr()
    assert evaluate(file) == 0
    told = capsys.readouterr()
    assert figure in told.out and not told.err
    other = Path("other.safetensors")
    assert evaluate(edited(file, other, lambda facts: None)) == 0
    told = capsys.readouterr()
    assert figure in told.out and "without a hash over its content" in told.err
    other_card = edited(file, other, lambda facts: facts["metrics"].update(top1=1.25))
    assert evaluate(other_card) == 0
    told = capsys.readouterr()
    assert figure in told.out and "had top1 1.25 on the same images" in told.err
    for change, why in (
        (
            lambda facts: facts.update(method="gptq"),
            "method is 'gptq', but 'toy-plain' in its spec",
        ),
        (lambda facts: facts.update(model="toy_b"), "model is 'toy_b', but 'toy_a'"),
        (lambda facts: facts.update(bits="W8A8"), "bits is 'W8A8', but 'W4A4'"),
        (lambda facts: facts.update(run_id="0" * 16), "run_id is '0000000000000000'"),
        (both("model", "toy_b", "model", "name"), "run_id is"),
        (drop_spec, "does not say which run it comes from"),
        (lambda facts: facts.update(task=3), "does not say which run it comes from"),
        (lambda facts: facts["spec"].update(table=4), "spec.table must be a bit table"),
        (lambda facts: facts["spec"]["method"].update(version="1"), "spec.method.version must be"),
        (lambda facts: facts["spec"].update(seed=1), "run_id is"),
    ):
        assert evaluate(edited(file, other, change)) == 2
        told = capsys.readouterr()
        assert why in told.err and not told.out and "Traceback" not in told.err
    table = lambda table: table["fc1.input"].update(bits=8)  # noqa: E731
    assert evaluate(edited(file, other, lambda facts: None, table)) == 2
    assert (
        "the bit table of its tensors is not that of its specification" in capsys.readouterr().err
    )


def test_a_program_named_in_a_file_is_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config file of mmdet is Python: only who sits at the command line may name one."""
    import torch

    from tests.bench.samples import make_record
    from vit_ptq_bench.bench.records.spec import RunSpec
    from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
    from vit_ptq_bench.methods.quantization.model.families import wrap_model
    from vit_ptq_bench.methods.quantization.storage import save_quantized
    from vit_ptq_bench.tasks.classification.zoo import build_architecture

    config, marker = folder / "config.py", folder / "ran"
    config.write_text(f"open({str(marker)!r}, 'w').close()\nmodel = {{}}\n")
    (folder / "data" / "val2017").mkdir(parents=True)
    (folder / "data" / "annotations").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "data" / "val2017" / "a.png")
    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    path = folder / "data" / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(annotations))
    (folder / "weights.pt").write_bytes(b"")
    table = equal_table(BitWidth(32, 32))
    data = make_record(method="fp32", bits="W32A32", table=table.to_dict()).spec.to_dict()
    data["task"]["name"], data["model"]["name"] = "coco", str(config)
    spec = RunSpec.from_dict(data)
    facts = {
        "run_id": spec.run_id,
        "task": "coco",
        "model": str(config),
        "method": "fp32",
        "bits": "W32A32",
        "protocol": "equal",
        "spec": spec.to_dict(),
    }
    with torch.no_grad():
        save_quantized(wrap_model(build_architecture("vit_mini"), table), folder / "q", facts)
    options = ["--data-dir", "data", "--checkpoint", "weights.pt"]
    assert main(["evaluate", "q", *options]) == 2
    assert f"if you trust that file, name it: --model {config}" in capsys.readouterr().err
    assert not marker.exists()
    assert main(["evaluate", "q", "--model", "mask_rcnn_swin_t", *options]) == 2
    assert "was made of the model" in capsys.readouterr().err
    assert not marker.exists()
    assert main(["evaluate", "q", "--model", str(config), *options]) == 2
    assert "describes no detector" in capsys.readouterr().err
    assert marker.exists(), "named by hand, it is read"
