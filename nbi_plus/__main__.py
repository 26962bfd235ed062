"""``python -m nbi_plus``: the same as ``nbi-plus``."""

from __future__ import annotations

import sys

from nbi_plus.cli import main

if __name__ == "__main__":
    sys.exit(main())
