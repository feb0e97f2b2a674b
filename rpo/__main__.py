"""Entry point of ``python -m rpo``, the same as ``rpo``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
