"""Specifications and records of runs, and the folder that holds them. Nothing here imports torch."""
