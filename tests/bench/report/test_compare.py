"""Two runs compared, and one shown."""

import numpy as np
import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.compare import compare
from vit_ptq_bench.bench.report.show import describe


def test_compare_and_show(tmp_path):
    store = Store(tmp_path)
    a, b = make_record(method="a", value=75.0), make_record(method="b", value=50.0)
    store.write(a, np.array([1, 1, 1, 0], dtype=bool))
    store.write(b, np.array([1, 0, 0, 1], dtype=bool))
    text = compare(a.run_id, b.run_id, tmp_path).to_text()
    assert "both right 1, only A 2, only B 1, neither 0" in text
    assert "A - B = +25.00 points" in text
    assert "p = 1" in text
    shown = describe(store.read(a))
    assert "75.00 %" in shown and a.run_id in shown and "a CPU" in shown
    store.path(b).with_suffix(".npz").unlink()
    with pytest.raises(BenchError, match="--overwrite missing"):
        compare(a.run_id, b.run_id, tmp_path)
    other = make_record(method="c", limit=3)
    store.write(other, np.ones(3, dtype=bool))
    with pytest.raises(BenchError, match="different images"):
        compare(a.run_id, other.run_id, tmp_path)
    variant = make_record(method="a", variant="+x", parameters={"k": 2})
    store.write(variant, np.ones(4, dtype=bool))
    text = compare(a.run_id, variant.run_id, tmp_path).to_text()
    assert "vit_mini a W4A4 equal: 75.00 %" in text
    assert "vit_mini a +x W4A4 equal: 100.00 %" in text
    assert "a +x version 1" in describe(variant)
    twin = make_record(method="a", variant="+x", parameters={"k": 3})
    store.write(twin, np.ones(4, dtype=bool))
    assert "vit_mini a +x (k=3) W4A4" in compare(variant.run_id, twin.run_id, tmp_path).to_text()
    failed = make_record(method="d", status="failed")
    store.write(failed)
    assert "it broke" in describe(failed)
