"""The module behind the protocol that calibration, gate and audit know: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphpress.backends.fx import dtypes, signature
from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.runner import Arrays


class ModuleRunner:
    """A module that runs on arrays (a ``Runner``)."""

    def __init__(
        self, model: ir.Model, module: fx.GraphModule, outputs: Sequence[str] | None, device: str = "cpu"
    ) -> None:
        self.module = module
        self.call = signature.read(model)
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        self.input_names = tuple(v.name or "" for v in inputs)
        self.output_names = tuple(outputs if outputs is not None else (v.name or "" for v in model.graph.outputs))
        self._types = {v.name: v.dtype.name if v.dtype else None for v in inputs}
        self._others = {v.name for v in inputs if not signature.is_tensor(v)}  # sequences and optional values
        values = {v.name: v for v in (*model.graph.outputs, *(o for n in model.graph for o in n.outputs))}
        self._results = {
            n: v.dtype.name if (v := values.get(n)) is not None and v.dtype else None for n in self.output_names
        }
        self._structured = outputs is None
        self.device = device

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Run once, without gradients.

        Raises:
            BadRequest: An input is missing, unknown, of the wrong type or shape, or the model fails on these values.
        """
        arguments = self.arguments(feeds)
        try:
            with torch.no_grad():
                result = self.module(*arguments)
        except (RuntimeError, IndexError, ValueError, TypeError) as e:
            if isinstance(e, GraphpressError):
                raise
            shapes = ", ".join(f"{name} {tuple(np.shape(a))}" for name, a in feeds.items())
            raise BadRequest(f"the model failed on {shapes}: {' '.join(str(e).split())[:500]}", where="torch") from e
        found = self.call.named(result) if self._structured else dict(zip(self.output_names, result, strict=True))
        return {name: _arrays(found[name], self._results[name]) for name in self.output_names}

    def arguments(self, feeds: Arrays) -> list[Any]:
        """What the module is called with, on its device.

        Raises:
            BadRequest: An input is missing, unknown, or of the wrong type.
        """
        tensors = {name: self._input(name, feeds) for name in self.input_names}
        if unknown := [name for name in feeds if name not in tensors]:
            where = f"input {unknown[0]!r}"
            raise BadRequest("the model has no such input", where=where, fix=nearest(unknown[0], self.input_names))
        return [signature.filled(tree, tensors) for _, tree in self.call.inputs]

    def _input(self, name: str, feeds: Arrays) -> Any:
        if name not in feeds:
            fix = f"Given: {', '.join(feeds) or 'none'}."
            raise BadRequest("the input is missing", where=f"input {name!r}", fix=fix)
        given: Any = feeds[name]
        if name in self._others and (given is None or isinstance(given, list)):
            return None if given is None else [self._tensor(name, array) for array in given]
        return self._tensor(name, given)

    def _tensor(self, name: str, array: Any) -> torch.Tensor:
        wanted = self._types[name]
        if not isinstance(array, np.ndarray | np.generic):
            raise BadRequest(f"is a {type(array).__name__}, not an array", where=f"input {name!r}")
        if wanted is not None and array.dtype != (want := ir.DataType[wanted].numpy()):
            raise BadRequest(f"is {array.dtype}, the model wants {want}", where=f"input {name!r}")
        found = dtypes.from_numpy(np.asarray(array), wanted or ir.DataType.from_numpy(array.dtype).name)
        return found.to(self.device)


def _arrays(result: Any, dtype: str | None) -> Any:
    """A tensor as an array, a sequence as a list of arrays, None as it is."""
    if isinstance(result, list):
        return [_arrays(part, dtype) for part in result]
    return None if result is None else dtypes.to_numpy(result, dtype)
