"""`python -m vit_ptq_bench`: the command line."""

import sys

from vit_ptq_bench.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
