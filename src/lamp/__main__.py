"""`python -m lamp`: the same as `lamp`, also where the package is not installed."""

import sys

from lamp.cli import main

sys.exit(main())
