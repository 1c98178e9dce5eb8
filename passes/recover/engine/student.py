"""A model, or a part of one, as a differentiable function of named tensors, and its parameters back into the graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.cut import cut
from graphpress.keys import PARAMETERS
from graphpress.passes.recover.losses.base import Seen, Tensors

if TYPE_CHECKING:
    import torch

NODE = "graphpress.node"  # in the meta of an fx node: the node of the graph that it computes
_TOLD = "teacher: "  # in a batch, before the names of the teacher's values
_FLOAT = "float: "  # likewise, of what the teacher reads


@dataclass(frozen=True)
class Excerpt:
    """Which part of a model, and how.

    Attributes:
        outputs: Values of the main graph to give.
        inputs: Values to be fed; None: the inputs of the graph.
        quantizers: ``straight-through``, or ``scales`` where those are trained too.
        device: Where it runs, as torch calls it.
    """

    outputs: Sequence[str]
    inputs: Sequence[str] | None = None
    quantizers: str = "straight-through"
    device: str = "cpu"


@dataclass(eq=False)
class Module:
    """Named tensors in, named tensors out, in evaluation mode: BatchNormalization keeps its statistics.

    Attributes:
        module: What runs.
        inputs: Names of what it reads, in order; of a batch it takes these.
        outputs: Names of what it gives, in order.
        parameters: What can be trained, by the names of the graph's initializers; all are frozen until ``train``.
        forms: How the module keeps each: "transpose", "view", or as in the graph.
    """

    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)

    def __call__(self, batch: Tensors) -> dict[str, torch.Tensor]:
        given: Sequence[torch.Tensor] = self.module(*(batch[name] for name in self.inputs))
        return dict(zip(self.outputs, given, strict=True))

    def train(self, names: Iterable[str]) -> dict[str, torch.nn.Parameter]:
        """Let these parameters have gradients and memory of their own; all others stay as they are. They, by name."""
        return {name: self.own(name).requires_grad_(True) for name in names}

    def own(self, name: str) -> torch.nn.Parameter:
        """A parameter with memory of its own, so that it may be written to."""
        self.parameters[name].data = self.parameters[name].data.clone()
        return self.parameters[name]

    def array(self, name: str, like: ir.Value) -> np.ndarray:
        """A parameter as the graph holds it."""
        tensor = self.parameters[name].detach().cpu()
        tensor = tensor.t() if self.forms[name] == "transpose" else tensor
        assert like.shape is not None
        return np.array(tensor.reshape(like.shape.numpy()).numpy())

    def kept(self, name: str, array: np.ndarray) -> torch.Tensor:
        """An array of the graph's shape as the module keeps the parameter of that name."""
        import torch

        parameter, tensor = self.parameters[name], torch.from_numpy(array)
        tensor = tensor.t() if self.forms[name] == "transpose" else tensor.reshape(parameter.shape)
        return tensor.to(parameter.device)

    def write(self, model: ir.Model, names: Iterable[str]) -> None:
        """Put these parameters into the initializers of ``model``, where they differ from what stands there."""
        for name in names:
            value = model.graph.initializers[name]
            array, old = self.array(name, value), value.const_value
            assert old is not None
            if not np.array_equal(array, old.numpy(), equal_nan=True):
                edit.overwrite(value, array)

    def explain(self, batch: Tensors) -> str:
        """The node of the graph whose result holds the first number that is none, or ""."""
        import torch
        from torch import fx

        class Watch(fx.Interpreter):
            found = ""

            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                parts = result if isinstance(result, tuple | list) else [result]
                broken = any(isinstance(t, torch.Tensor) and not torch.isfinite(t).all() for t in parts)
                if broken and not self.found:
                    self.found = f"node {n.meta[NODE]!r}" if NODE in n.meta else f"parameter or input {n.name!r}"
                return result

        assert isinstance(self.module, fx.GraphModule)
        watch = Watch(self.module)
        with torch.no_grad():
            watch.run(*(batch[name] for name in self.inputs))
        return watch.found


def look(student: Module, teacher: Module | None, outputs: tuple[str, ...], batch: Tensors) -> Seen:
    """A batch as a student and its teacher see it.

    The student runs with gradients; the teacher without, unless ``told`` has put its values into the batch. ``outputs``
    are what losses compare by default.
    """
    import torch

    given: Tensors = {k.removeprefix(_TOLD): t for k, t in batch.items() if k.startswith(_TOLD)}
    if not given and teacher is not None:
        with torch.no_grad():
            given = teacher(batch)
    return Seen(batch, student(batch), given, outputs)


def told(batch: Tensors, teacher: Tensors) -> dict[str, torch.Tensor]:
    """The batch with the teacher's values in it."""
    return {**batch, **{_TOLD + name: tensor for name, tensor in teacher.items()}}


def given_by(batch: Tensors, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of the teacher's values that ``told`` has put into a batch."""
    return {name: batch[_TOLD + name] for name in names if _TOLD + name in batch}


def beside(batch: Tensors, read: Tensors) -> dict[str, torch.Tensor]:
    """The batch with what the teacher reads in it, where that is not what the student does."""
    return {**batch, **{_FLOAT + name: tensor for name, tensor in read.items()}}


def float_of(batch: Tensors, name: str) -> torch.Tensor | None:
    """What the teacher reads in place of a value, or None."""
    return batch.get(_FLOAT + name)


def build(model: ir.Model, ctx: Context, wanted: Excerpt) -> Module:
    """The part of ``model`` between some values as a module; the model is not changed.

    Raises:
        BadRequest: There is no torch backend at hand, or the device is not there.
        Unsupported: torch is not installed, or an operator has no form in it.
    """
    differentiate = ctx.need("differentiate", "recover", "training needs the torch backend")
    part = extract(model, wanted.inputs, wanted.outputs)
    made = differentiate(part, list(wanted.outputs), quantizers=wanted.quantizers)
    kept = made.meta[PARAMETERS]
    made = _on(made, wanted.device)
    known = dict(made.named_parameters(remove_duplicate=False))
    parameters = {name: known[path] for name, (path, _) in kept.items() if path in known}
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    inputs = tuple(v.name or "" for v in part.graph.inputs if not v.is_initializer())
    return Module(made, inputs, tuple(wanted.outputs), parameters, {name: form for name, (_, form) in kept.items()})


def _on(module: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as e:
        raise BadRequest(str(e).splitlines()[0], where=f"recover: device {device!r}", fix="Use cpu.") from e


def extract(model: ir.Model, inputs: Sequence[str] | None, outputs: Sequence[str]) -> ir.Model:
    """The nodes between some values as a model that shares its weights; inputs that it does not read are left out.

    Raises:
        StaleSite: The main graph has no such value.
    """
    model = typed(model)
    known = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    given = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    starts = list(dict.fromkeys([*(inputs or ()), *given]))
    read = _read([known[n] for n in starts if n in known], [known[n] for n in outputs if n in known])
    part = cut(model, [n for n in starts if n not in known or known[n] in read], outputs)
    part.metadata_props.clear()  # a traced model notes how it is called as a whole
    return part


def typed(model: ir.Model) -> ir.Model:
    """The model in topological order with the types of its values: itself, or a copy."""
    if all(v.dtype is not None for n in model.graph for v in n.outputs):
        return model
    model = model.clone()
    model.graph.sort()
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    return model


def _read(starts: Collection[ir.Value], outputs: Sequence[ir.Value]) -> set[ir.Value]:
    """Those of ``starts`` that the outputs depend on."""
    stops, found, seen = set(starts), set[ir.Value](), set[ir.Node]()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in stops:
            found.add(value)
            continue
        node = value.producer()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(edit.reads(node))
    return found
