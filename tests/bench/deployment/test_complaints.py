"""How many predictions a file, and what it was written of, must have in common with the simulation."""

import pytest

from vit_ptq_bench.bench.deployment.comparison import (
    IN_DOUBLE,
    OPERATORS,
    SIMULATED,
    Row,
    complaints,
)

IN_FLOAT64 = "the simulation in float64"
DEPLOYED, FULL = "deployed on ONNX Runtime", "FP32 on ONNX Runtime"


def rows(in_double, operators, deployed, beside=SIMULATED):
    shares = {
        SIMULATED: (None, None),
        IN_DOUBLE: (SIMULATED, in_double),
        OPERATORS: (IN_DOUBLE, operators),
        DEPLOYED: (beside, deployed),
        FULL: (None, None),
    }
    return [Row(title, 60.0, 500, *held, None, None) for title, held in shares.items()]


@pytest.mark.parametrize(
    ("shares", "agreement"),
    [
        ((70.2, 100.0, 68.2), None),
        ((70.2, 99.0, 74.4), None),
        ((10.0, 99.0, 60.0), 60.0),
        ((70.2, 100.0, 99.0, IN_DOUBLE), None),
    ],
)
def test_rounding_alone_is_no_complaint(shares, agreement):
    assert complaints(rows(*shares), agreement) == []


@pytest.mark.parametrize(
    ("shares", "agreement", "said"),
    [
        (
            (70.2, 98.8, 70.0),
            None,
            "its operators in float64: 98.8 % of the predictions are those of the simulation in float64, "
            "fewer than 99.0 %",
        ),
        (
            (70.2, 100.0, 68.0),
            None,
            f"{DEPLOYED}: 68.0 % of the predictions are those of the simulated model, fewer than 68.2 %",
        ),
        (
            (70.2, 100.0, 74.4),
            99.0,
            f"{DEPLOYED}: 74.4 % of the predictions are those of the simulated model, fewer than 99.0 %",
        ),
        (
            (70.2, 100.0, 98.8, IN_DOUBLE),
            None,
            f"{DEPLOYED}: 98.8 % of the predictions are those of {IN_FLOAT64}, fewer than 99.0 %",
        ),
        (
            (70.2, 100.0, 99.4, IN_DOUBLE),
            100.0,
            f"{DEPLOYED}: 99.4 % of the predictions are those of {IN_FLOAT64}, fewer than 100.0 %",
        ),
    ],
)
def test_too_few_are_one_complaint_each(shares, agreement, said):
    assert complaints(rows(*shares), agreement) == [said]
