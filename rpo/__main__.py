"""Entry point of ``python -m rpo``, the same as ``rpo``."""

import sys

from .program import run_program

if __name__ == "__main__":
    sys.exit(run_program())
