"""Fixtures of the tests of serving, which use the tests of training's tiny data and models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_fakes import running

from lamp.serve.server import PolicyServer

sys.path.append(str(Path(__file__).parents[1] / "train"))


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with running() as server:
        yield server
