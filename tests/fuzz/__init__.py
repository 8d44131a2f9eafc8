"""A coverage-guided fuzzer (atheris) for everything that reads a user's file: ``python -m tests.fuzz``."""
