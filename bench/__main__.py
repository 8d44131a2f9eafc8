"""`python -m bench`."""

import sys

from vit_ptq_bench.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
