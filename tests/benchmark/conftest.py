"""The tests of evaluation use the tests of training's tiny data, backbone and models."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "train"))
