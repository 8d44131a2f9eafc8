"""Faults caused on purpose, each judged by an oracle of its own: ``python -m tests.faults``."""
