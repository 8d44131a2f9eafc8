"""The contract finds every way to break it that it names, and `bench check-method` says what to do."""

import tempfile
from pathlib import Path

import pytest
import torch

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.contract.checks import CHECKS
from vit_ptq_bench.bench.contract.opened import opened_while
from vit_ptq_bench.bench.contract.subject import Broken, Subject
from vit_ptq_bench.bench.contract.trial import try_method
from vit_ptq_bench.methods.api.registry import METHODS

BY_NAME = {check.name: check for check in CHECKS}
MinMax = METHODS.get("minmax")


class Silent(MinMax):
    """Says nothing of how far it is."""

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, None)


class Anonymous(MinMax):
    __doc__ = ""


class Editor(MinMax):
    """Changes weights at any number of bits."""

    def calibrate(self, model, calibration, progress=None):
        model.weighted_operations()[3].weight.data.mul_(1.05)
        super().calibrate(model, calibration, progress)


class Clipper(MinMax):
    """Clips all activations to a third of their range."""

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        for site in model.sites():
            if not site.is_weight and not site.quantizer.spec.is_float:
                site.quantizer.scale.div_(3)


class Generous(MinMax):
    """Adds the rounding error of activations again, so that they have more levels than their bits."""

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        for site in model.sites():
            if site.name.endswith("qkv.input"):
                site.quantizer.fake_quantize = lambda x: x.round(decimals=2)


class Restless(MinMax):
    """Draws from torch's generator."""

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        for site in model.sites():
            if site.quantizer.scale.numel():
                site.quantizer.scale.mul_(1 + 0.1 * torch.rand(1))


class Backwards(MinMax):
    """Is worst at 8 bits."""

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        if model.table["qkv.input"].bits == 8:
            for site in model.sites():
                if not site.is_weight:
                    site.quantizer.scale.div_(8)


class Reader(MinMax):
    """Looks at a file of labels."""

    labels: Path

    def calibrate(self, model, calibration, progress=None):
        self.labels.read_text()
        super().calibrate(model, calibration, progress)


class Hoarder(MinMax):
    """Keeps a copy of everything that any quantizer has seen."""

    def calibrate(self, model, calibration, progress=None):
        kept = []
        with torch.no_grad():
            for site in model.sites():
                if not site.is_weight:
                    site.quantizer.register_forward_pre_hook(
                        lambda module, inputs: kept.append(inputs[0].clone())
                    )
            for batch in calibration.batches:
                model(batch)
        super().calibrate(model, calibration, progress)


class Deaf(MinMax):
    """Turns what is not finite into zero."""

    def quantize(self, model, table, calibration, progress=None):
        calibration.batches = [batch.nan_to_num() for batch in calibration.batches]
        return super().quantize(model, table, calibration, progress)


class Everyman(MinMax):
    """Takes any model."""

    def supports(self, model, table):
        return None


class OnlyViT(MinMax):
    """Goes over the modules of a ViT."""

    def calibrate(self, model, calibration, progress=None):
        if not hasattr(model.module, "cls_token"):
            raise AttributeError("no attribute 'cls_token'")
        super().calibrate(model, calibration, progress)


@pytest.mark.parametrize(
    ("offender", "name", "on", "words"),
    [
        (Anonymous, "declares-itself", "vit", "no docstring"),
        (Editor, "keeps-full-precision", "vit", "at W32A32 an output is off by"),
        (Clipper, "is-close-at-8-bits", "vit", "at W8A8, equal, the outputs are off by"),
        (Generous, "respects-bits", "vit", r"at W2A2 blocks.0.attn.qkv.input has \d+ levels"),
        (Generous, "quantizes-every-family", "swin", r"at W4A4 .*qkv.input has \d+ levels"),
        (Restless, "is-decided-by-its-seed", "vit", "the same seed gives other outputs"),
        (Backwards, "loses-more-at-fewer-bits", "vit", "errors at W8A8, W4A4, W2A2"),
        (Deaf, "names-what-is-not-finite", "vit", "NaN at patch_embed went unnoticed"),
        (Silent, "tells-its-progress", "vit", "never called"),
        (Hoarder, "keeps-little", "deep-vit", r"holds \d+ kB per image between passes"),
        (Everyman, "refuses-what-it-cannot-do", "vit", "accepts a plain convolutional network"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_way_to_break_it_is_found(offender, name, on, words):
    with pytest.raises(Broken, match=words):
        BY_NAME[name].look(Subject(offender, on))
    BY_NAME[name].look(Subject(MinMax, on))


def test_a_file_that_a_method_opens_is_named(tmp_path, monkeypatch):
    labels = tmp_path / "labels.txt"
    labels.write_text("1\n")
    monkeypatch.setattr(Reader, "labels", labels, raising=False)
    with pytest.raises(Broken, match=r"opened .*labels\.txt"):
        BY_NAME["opens-nothing"].look(Subject(Reader, "vit"))
    assert opened_while(lambda: Path(tempfile.mkstemp()[1]).write_text("what it keeps")) == []


def test_whatever_a_method_raises_breaks_a_clause_and_not_the_trial():
    found = list(try_method(OnlyViT, [BY_NAME["quantizes-every-family"]]))
    assert [one.outcome for one in found] == ["holds", "broken", "broken"]
    assert "AttributeError: no attribute 'cls_token'" in found[1].words
    assert "test_contract.py:" in found[1].words


def test_a_new_method_keeps_the_contract_as_it_is_written(folder, capsys):
    assert main(["new-method", "half-range"]) == 0
    out = capsys.readouterr().out
    assert "bench check-method half_range.py" in out
    assert main(["check-method", "half_range.py"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("half-range:\n  ok   the class says what it is (vit, ")
    assert out.endswith("the contract holds\n")
    assert "FAIL" not in out


def test_what_is_broken_is_told_with_what_to_do(folder, capsys):
    main(["new-method", "third-range"])
    path = folder / "third_range.py"
    path.write_text(path.read_text().replace("bounded(0.9", "bounded(0.3"))
    capsys.readouterr()
    assert main(["check-method", str(path)]) == 1
    out = capsys.readouterr().out
    assert "  FAIL 8 bits stay close to full precision (vit, " in out
    assert "       to do: look at the ranges" in out
    assert "broken\n" in out.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new-method", "Mine"], "lower-case kebab"),
        (["new-method", "minmax"], "there is a method 'minmax' already"),
        (["new-method", "mine", "--folder", "nowhere"], "cannot write nowhere/mine.py"),
        (["check-method", "nosuch"], "unknown method 'nosuch'"),
        (["check-method", "empty.py"], "empty.py registers no method"),
    ],
    ids=" ".join,
)
def test_wrong_names_are_told(folder, capsys, arguments, words):
    (folder / "empty.py").write_text("")
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_nothing_is_overwritten(folder, capsys):
    (folder / "mine.py").write_text("precious")
    assert main(["new-method", "mine"]) == 2
    assert "mine.py is there already; it was left as it is" in capsys.readouterr().err
    assert (folder / "mine.py").read_text() == "precious"
