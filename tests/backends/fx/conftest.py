"""What tests of the torch backend share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    """torch.compile gives up after eight modules that share code, and all modules share that of their checks."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
