"""What the tests of the house share."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpress.tools.check import rooms


@pytest.fixture(scope="session")
def sources(checkout: Path) -> list[rooms.Source]:
    """Every file of the rooms, each parsed once."""
    return rooms.sources(checkout)
