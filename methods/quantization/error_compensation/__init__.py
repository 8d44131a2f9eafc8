"""Weights that make up for errors in closed form: column by column, by ridge regression."""
