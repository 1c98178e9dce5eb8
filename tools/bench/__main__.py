"""``make bench``: the table of all real models and recipes."""

from __future__ import annotations

import sys

from graphpress.tools.bench.table import main

if __name__ == "__main__":
    sys.exit(main())
