"""The choices of a reconstruction that have names."""

from __future__ import annotations

from typing import Literal

UnitGranularity = Literal["layer", "half", "block", "pair", "disjoint-pair", "stage", "model"]
"""How much of a model one unit is, see `units.steps_of`."""

Weighting = Literal["first", "shared", "running", "plain"]
"""How losses are weighted against each other, see `recipe.Recipe`."""
