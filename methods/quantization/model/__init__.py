"""A model with quantizers: operations, attention, structure, folding, architecture families."""
