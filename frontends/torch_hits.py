"""Loops over what of a mask holds, as routers go over the experts that were hit: traced over all that may hold.

``for expert in hit.nonzero()`` runs as often as the values say, which no graph can. Most bodies of such a loop choose
rows by the same mask, so that one more round, for what was not hit, changes nothing. That is tried before it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST = 1024  # rounds


@dataclass
class Rounds:
    """How many rounds loops have run for what was not hit."""

    spare: int = 0


@contextlib.contextmanager
def every(torch: Any) -> Iterator[Rounds]:
    """A loop over the places where a vector of known length is not zero goes over all its places."""
    own: dict[str, Any] = {}
    tensor, rounds = torch.Tensor, Rounds()

    def nonzero(self: Any, *, as_tuple: bool = False) -> Any:
        found = own["nonzero"](self, as_tuple=as_tuple)
        if self.ndim == 1 and isinstance(self.shape[0], int) and self.shape[0] <= _MOST:
            (found[0] if as_tuple else found).candidates = self.shape[0]
        return found

    def iterate(self: Any) -> Any:
        count = getattr(self, "candidates", None)
        if count is None:
            return own["__iter__"](self)
        if isinstance(self.shape[0], int):  # it runs for once, and is not traced
            rounds.spare += count - self.shape[0]
        shape = [1] * (self.ndim - 1)
        return (torch.tensor(i).reshape(shape) for i in range(count))

    def written(self: Any, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else own["__format__"](self, spec)

    places = {"nonzero": nonzero, "__iter__": iterate, "__format__": written}
    own |= {name: getattr(tensor, name) for name in places}
    function, torch.nonzero = torch.nonzero, nonzero
    try:
        for name, new in places.items():
            setattr(tensor, name, new)
        yield rounds
    finally:
        torch.nonzero = function
        for name, old in own.items():
            setattr(tensor, name, old)


def harmless(torch: Any, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the module gives the same, bit for bit, under ``every``, and there were rounds too many to tell by.

    On the example, and on one of which each tensor has but one value throughout: then routers hit few.
    """
    if not isinstance(module, torch.nn.Module):
        return False
    spare = 0
    with contextlib.suppress(Exception):  # why it cannot be traced is known already
        for alike in (False, True):
            wanted = _called(torch, module, (args, kwargs), alike)
            with every(torch) as rounds:
                given = _called(torch, module, (args, kwargs), alike)
            torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)
            spare += rounds.spare
        return spare > 0
    return False


def _called(torch: Any, module: Any, given: tuple[Sequence[Any], Mapping[str, Any]], alike: bool) -> list[Any]:
    """The tensors that the module makes of copies of what is given, each filled with its first value if ``alike``."""
    from torch.utils import _pytree as pytree

    def copied(tensor: Any) -> Any:
        return torch.full_like(tensor, tensor.reshape(-1)[0].item()) if alike and tensor.numel() else tensor.clone()

    args, kwargs = pytree.tree_map_only(torch.Tensor, copied, (tuple(given[0]), dict(given[1])))
    return [t for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]
