from __future__ import annotations

import pytest

from lamp.bench import timing


@pytest.fixture(autouse=True)
def brief_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can do is measured on little: how fast anything is, no test says."""
    monkeypatch.setattr(timing, "MATRIX_SIDE", {"cpu": 512})
    monkeypatch.setattr(timing, "COPIED_BYTES", {"cpu": 2**24})
    monkeypatch.setattr(timing, "CEILING_S", 0.05)
