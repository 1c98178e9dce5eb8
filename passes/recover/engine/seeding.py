"""Draws and sums of torch that are the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """What torch draws follows from ``seed``, and sums are taken in a fixed order; all as before afterwards."""
    import torch

    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled
