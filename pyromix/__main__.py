"""``python -m pyromix``."""

from __future__ import annotations

import sys

from pyromix.cli import main

if __name__ == "__main__":
    sys.exit(main())
