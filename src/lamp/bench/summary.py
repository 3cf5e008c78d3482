"""Files of `lamp bench infer --json` and `lamp bench train-step --json`, a line each: `python -m lamp.bench.summary FILE...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def line(name: str, found: Mapping[str, Any]) -> str:
    """What one result says."""
    ours, other = (1e3 * found[way]["p50_s"] for way in ("ours", "other"))
    said = [
        f"{name}: {ours:.2f} ms, {found['against']} {other:.2f} ms, ratio {found['ratio']:.2f}",
        f"{found['machine']['name']}, {found['machine']['precision']}",
    ]
    if "over_floors" in found:
        said.append(
            f"{found['over_floors']:.2f}x the sum of the floors, least cosine to the plain path {found['cosine']:.5f}"
        )
    return "; ".join(said)


def summary(files: Sequence[Path]) -> str:
    """A line for each file that holds a result, and a word for each that does not."""
    lines = []
    for file in files:
        try:
            lines.append(line(file.stem, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError):
            lines.append(f"{file.stem}: no result")
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary([Path(name) for name in sys.argv[1:]]))
