"""State that a module computes with as if it were fixed: numbers kept as tensors, and layers moved to where they are.

Codecs keep strides and paddings as integer buffers that no state dict has, and pad by them: torch's exporter takes such
a number for unknown. Routers move a layer to its own type at each call, which the exporter cannot do to what it traces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def numbers(torch: Any, module: Any) -> Iterator[None]:
    """Buffers of one whole number that belong to no state dict are read as that number."""
    parts = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    with contextlib.ExitStack() as stack:
        for part in parts:
            found = {name: int(part._buffers[name]) for name in sorted(part._non_persistent_buffers_set)
                     if _whole(torch, part._buffers.get(name))}  # fmt: skip
            if found:
                stack.enter_context(_read(torch, part, found))
        yield


def fixed(torch: Any, module: Any) -> bool:
    """Whether ``numbers`` would change anything."""
    parts = module.modules() if isinstance(module, torch.nn.Module) else []
    return any(_whole(torch, p._buffers.get(n)) for p in parts for n in p._non_persistent_buffers_set)


def _whole(torch: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype in (torch.int64, torch.int32)


@contextlib.contextmanager
def _read(torch: Any, part: Any, found: dict[str, int]) -> Iterator[None]:
    """A class of the module's own that makes the tensor anew at each reading, while it is traced: then it is known."""
    own, kept = type(part), {name: part._buffers[name] for name in found}

    def number(name: str) -> property:
        return property(lambda self: torch.tensor(found[name], dtype=kept[name].dtype))

    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    part.__class__ = type(own.__name__, (own,), names | {name: number(name) for name in found})
    buffers = dict(part._buffers)
    for name in found:
        del part._buffers[name]
    try:
        yield
    finally:
        part.__class__ = own
        part._buffers.clear()
        part._buffers.update(buffers)


@contextlib.contextmanager
def in_place(torch: Any) -> Iterator[None]:
    """``Module.to`` of what is of that type and on that device already does nothing, as outside of a trace."""
    own = torch.nn.Module.to

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        tensors = [*self.parameters(), *self.buffers()]
        there = all(device is None or t.device == device for t in tensors)
        alike = all(dtype is None or t.dtype == dtype or not t.is_floating_point() for t in tensors)
        return self if layout is None and there and alike else own(self, *args, **kwargs)

    torch.nn.Module.to = to
    try:
        yield
    finally:
        torch.nn.Module.to = own
