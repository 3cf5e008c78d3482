"""The tests of pictures use the tests of training's tiny data and models."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "train"))
