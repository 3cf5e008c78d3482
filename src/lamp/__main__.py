"""`python -m lamp`: the `lamp` command, for launchers that start modules (torchrun -m lamp, accelerate launch -m lamp)."""

from __future__ import annotations

import sys

from lamp.cli import main

if __name__ == "__main__":
    sys.exit(main())
