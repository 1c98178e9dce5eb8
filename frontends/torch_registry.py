"""What torch's exporter knows of its operators, read once.

``torch.onnx.export`` reads the sources of some five hundred functions at each call to learn their signatures, which
takes longer than tracing most modules.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Iterator
from typing import Any

from graphpress.frontends import torch_complex

_READ: dict[Any, Any] = {}
_ONE_AT_A_TIME = threading.RLock()  # what two threads put in one place could not be taken away in any order


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What exports inside have in common is read by the first; each gets a registry of its own all the same.

    Where torch keeps it in another place than torch 2.11 to 2.13 do, exports read it anew.
    """
    try:
        import torch
        from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

        _ = vars(Registry)["from_torchlib"], Registry().functions
    except (ImportError, KeyError, AttributeError):
        yield
        return

    def copied(*args: Any, **kwargs: Any) -> Any:
        key = (*args, *kwargs.items(), "torchvision" in sys.modules)  # whose operators are there once it is imported
        if key not in _READ:
            _READ[key] = read(*args, **kwargs)
            for target, form in torch_complex.table(torch).items():
                _READ[key].register_op(target, form, is_complex=True)
        found = copy.copy(_READ[key])
        found.functions = {target: list(known) for target, known in found.functions.items()}
        return found

    with _ONE_AT_A_TIME:
        own, read = vars(Registry)["from_torchlib"], Registry.from_torchlib
        Registry.from_torchlib = staticmethod(copied)
        try:
            yield
        finally:
            Registry.from_torchlib = own
