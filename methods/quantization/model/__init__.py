"""A model with quantizers: operations, structure, folding, architecture families."""
