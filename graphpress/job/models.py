"""Models in and out: load, save, trace, lower for a runtime, audit what runs there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit, names
from graphpress.job import engine, student
from graphpress.runner import Arrays
from graphpress.target import Target

ModelLike: TypeAlias = ir.Model | onnx.ModelProto | str | Path


def load(path: str | Path) -> ir.Model:
    """An ONNX file as a model; weights stay on disk until they are touched.

    Raises:
        InvalidModel: Anything wrong with the file, in one sentence.
    """
    from graphpress.frontends import onnx_file

    return onnx_file.load(path)


def save(model: ModelLike, path: str | Path, *, external: bool | None = None) -> None:
    """Write a model atomically; weights in one external file above 1 GB or on request."""
    from graphpress.frontends import onnx_file

    onnx_file.save(as_model(model), path, external=external)


def trace(
    module: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    fold_batchnorm: bool = True,
    opset: int = 23,
) -> ir.Model:
    """A torch module as a graph of inference, under the names it has in torch (see ``frontends.torch_export.trace``).

    Args:
        module: An nn.Module (an fx.GraphModule is one), or an ExportedProgram. What ``to_torch`` made gives its graph
            back, Q/DQ and all, as by ``from_torch``; nothing is traced then, and the other arguments do not count.
        args: Example inputs: positional arguments of ``forward``; a tensor alone is the only one.
        kwargs: Its keyword arguments.
        dynamic_shapes: Which dimensions vary, as torch.export takes them: by argument name or position,
            ``{"x": {0: torch.export.Dim("batch")}}``.
        fold_batchnorm: Fold BatchNormalization into the convolution or linear layer before it.
        opset: ONNX opset of the graph; below 23, attention and RMS norm come as the many operators they consist of.

    Raises:
        Unsupported: The module cannot be traced or has an operator without a form in ONNX; names the module's path
            and the line of its source.
        BadRequest: The arguments do not fit the module.
    """
    from graphpress.frontends import torch_export

    if student.is_student(module):
        return student.restored(module)
    return torch_export.trace(module, args, kwargs, dynamic_shapes, fold_batchnorm=fold_batchnorm, opset=opset)


def lower(model: ModelLike, target: str | Target = "ort-cpu") -> Any:
    """An executable for a target.

    Args:
        model: A model or the path of an ONNX file; never changed.
        target: ``ort-cpu`` gives a ``Runner``: named arrays in, named arrays out. ``torch-cpu`` and ``torch-cuda`` give
            a ``torch.fx.GraphModule`` with the call signature and the parameter names of the module that was traced
            (of an ONNX file: its inputs in order, its initializers' names), with torch's low-bit kernels where the
            graph is quantized. ``to_torch`` gives one to train.

    Raises:
        BadRequest: There is no such target, or its device is not there.
        Unsupported: The runtime has no form of an operator.
    """
    model, where = as_model(model), as_target(target)
    runtime = engine.of(where)
    return runtime.deploy(runtime.lower(model, where), where)


def audit(model: ModelLike, target: str | Target = "ort-cpu", feeds: Arrays | None = None) -> Any:
    """What really runs: kernel, time and reason for each site (see the backend's ``Audit``)."""
    model, where = as_model(model), as_target(target)
    runtime = engine.of(where)
    return runtime.audit(runtime.lower(model, where), where, feeds)


def as_model(model: ModelLike) -> ir.Model:
    """The model itself, a copy with names and types where it leaves them out, the file of that path, the graph of a
    ModelProto, or a student's.

    Raises:
        BadRequest: It is neither.
        InvalidModel: Anything wrong with the file.
    """
    if isinstance(model, ir.Model):
        return model if _complete(model) else _completed(model)
    if isinstance(model, str | Path):
        return load(model)
    if isinstance(model, onnx.ModelProto):
        from graphpress.frontends import onnx_file

        return onnx_file.of_proto(model)
    if student.is_student(model):
        return student.restored(model)
    raise BadRequest(
        f"a model is an onnx_ir.Model, an onnx.ModelProto or the path of an ONNX file, not a {type(model).__name__}",
        where="model",
        fix="Bring a torch module in with graphpress.trace(module, args).",
    )


def _complete(model: ir.Model) -> bool:
    """Whether each node has a name of its own, each value one, and each initializer a type and a shape."""
    nodes = [node.name for node in edit.nodes(model)]
    made = all(o.name for node in edit.nodes(model) for o in node.outputs)
    return made and all(nodes) and len(set(nodes)) == len(nodes) and not any(map(_untyped, _initializers(model)))


def _completed(model: ir.Model) -> ir.Model:
    """A copy of a graph that was made in Python, with what onnx_ir leaves to whoever writes the file."""
    from onnx_ir.passes.common import NameFixPass

    copy = model.clone()
    for value in filter(_untyped, _initializers(copy)):
        if (tensor := value.const_value) is not None:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    NameFixPass()(copy)
    names.unique_names(copy)
    return copy


def _untyped(value: ir.Value) -> bool:
    return value.dtype is None or value.shape is None


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in edit.graphs(model):
        if isinstance(graph, ir.Graph):
            yield from graph.initializers.values()


def as_target(target: str | Target) -> Target:
    """The target itself, or the one of that name."""
    return target if isinstance(target, Target) else Target.load(target)
