"""Every registered method keeps the contract; a new method is tried here without an edit."""

import ast
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from vit_ptq_bench.bench.contract.subject import NotApplicable, Subject
from vit_ptq_bench.bench.contract.trial import cases
from vit_ptq_bench.methods.api.registry import METHODS, register_method
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model

NAMES = sorted(METHODS.module_dict)

CASES = [
    pytest.param(name, on, check, id=f"{name}-{on}-{check.name}")
    for name in NAMES
    for check, on in cases()
]


@lru_cache(maxsize=1)
def subject(name, on):
    """The method on one model; its quantized copies serve all clauses, which come one after the other."""
    return Subject(METHODS.get(name), on)


@pytest.mark.parametrize(("name", "on", "check"), CASES)
def test_a_method_keeps_the_contract(name, on, check):
    try:
        check.look(subject(name, on))
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_of_the_project_says_its_family(name):
    assert METHODS.get(name).family != "other"


def _quantize(method, model, calibration, bits):
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def test_parameters_are_checked():
    cls = METHODS.get("ptq4vit")
    assert repr(cls.create({"alpha": 1}).parameters.alpha) == "1.0"  # one setting, one run id
    for bad in ({"steps": "many"}, {"steps": True}, {"gradient": "exact"}, {"alpha": None}):
        with pytest.raises(MethodError, match=f"ptq4vit.{next(iter(bad))}"):
            cls.create(bad)
    with pytest.raises(MethodError, match="no parameter 'alhpa'"):
        cls.create({"alhpa": 1})


def test_another_architecture_is_refused_with_what_is_supported(calibration):
    import timm

    resnet = timm.create_model("resnet18", num_classes=3)
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth(4, 4))
    assert "Supported" in method.supports(resnet, table)
    with pytest.raises(MethodError, match="Supported"):
        method.quantize(resnet, table, calibration)


def test_registry_refuses_bad_and_taken_names():
    base = METHODS.get("minmax")
    for name, message in (("minmax", "taken by"), ("MinMax", "kebab"), ("min_max", "kebab")):
        with pytest.raises(MethodError, match=message):
            register_method(type("Other", (base,), {"name": name}))
    with pytest.raises(MethodError, match="paper"):
        register_method(type("Other", (base,), {"name": "other", "paper": ""}))


def test_an_uncalibrated_site_is_reported(vit, calibration):
    class Forgetful(METHODS.get("minmax")):
        def calibrate(self, model, calibration, progress=None):
            pass

    with pytest.raises(
        MethodError, match=r"calibration left \d+ sites without scales.*patch_embed"
    ):
        _quantize(Forgetful.create({}), vit, calibration, "W4A4")
    with pytest.raises(MethodError, match="empty"):
        Calibration([])


def test_methods_import_neither_bench_nor_tasks():
    for folder, banned in (("methods", ("bench", "tasks")), ("tasks", ("bench", "methods"))):
        for path in (Path(__file__).parents[2] / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not [n for n in names if (n + "..").split(".")[1] in banned], path


@torch.no_grad()
def test_weights_are_quantized_once(vit, images, calibration):
    quantized = _quantize(METHODS.get("minmax").create({}), vit, calibration, "W4A4")
    calls = []
    for operation in quantized.weighted_operations():
        operation.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    quantized(images)
    assert not calls


def test_wrapping_with_a_float_table_has_no_active_quantizer(vit):
    wrapped = wrap_model(vit, equal_table(BitWidth(FLOAT, FLOAT)))
    wrapped.activate()
    assert not any(site.quantizer.quantizes for site in wrapped.sites())
