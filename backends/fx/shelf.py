"""Stored tensors as parameters and buffers under their own names, sharing the graph's memory until they are written."""

from __future__ import annotations

import functools
import itertools
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphpress.backends.fx import dtypes, state_dicts
from graphpress.graph import edit, quantized
from graphpress.keys import ROLE, SCALED, SOURCE, steps

LOG = "_log"  # behind the name of a scale: the logarithm of what it is multiplied by
_SAME = {"identity", "cast", "castlike"}
_VIEWS = _SAME | {"reshape", "flatten", "squeeze", "unsqueeze"}
_UNSAFE = re.compile(r"""["'\\\x00-\x1f\x7f\x85\u2028\u2029{}]""")


class Shelf:
    """The parameters and buffers of one module."""

    def __init__(self, learned: str = "") -> None:
        self.root = torch.nn.Module()
        self.learned = learned  # what of Q/DQ becomes a parameter: see ``Options``
        self.kept: dict[str, tuple[str, str]] = {}  # of a tensor, by its name in the graph: path and ``form``
        self._steps: dict[int, str] = {}  # of a scale: the path of the logarithm of its factor
        self._paths: dict[int, str] = {}
        self._folded: dict[str, tuple[str, ...]] = {}  # tensors that are not the source's of their name, and from what
        self._temporary: list[str] = []
        self._tied: dict[str, str] = {}  # other names of a parameter
        self._shared: dict[str, str] = {}  # paths of parameters that several constants are

    def path(self, value: ir.Value) -> str:
        """The attribute path of a constant; it is put on the shelf when it is first asked for, as torch keeps it."""
        if id(value) not in self._paths:
            self._paths[id(value)] = self._put(value)
        return self._paths[id(value)]

    def _put(self, value: ir.Value) -> str:
        data, kind = share(value), form(value)
        name, one = value.name or "constant", kind != "computed" and _source(value).get("shared")
        if one:  # several constants are the parameter, in one form or another
            name = _source(value)["parameter"]
            if name in self._shared:
                self.kept[value.name or ""] = self._shared[name], kind
                return self._shared[name]
        if any(u.node.op_type == "BatchNormalization" and u.idx in (3, 4) for u in value.uses()):
            data = data.clone()  # training updates statistics in place
        data = data.t() if kind == "transpose" else data.reshape(torch_shape(value)) if kind == "view" else data
        kept = self._as_trained(value, data)
        path = place(self.root, name, kept)
        if self._relative(value):
            self._steps[id(value)] = place(self.root, f"{path}{LOG}", torch.nn.Parameter(torch.zeros_like(data)))
            kind = "steps"
        elif data.dtype != kept.dtype:
            kind = "zero point"
        if one:
            self._shared[name] = path
        folded = kind == "computed" or SCALED in steps(value)
        if not isinstance(kept, torch.nn.Parameter):
            if folded or value.metadata_props.get(ROLE) == "temporary":
                self._temporary.append(path)
        elif folded:
            self._folded[path] = () if SCALED in steps(value) else parametrized(value)
        else:
            self._tied |= dict.fromkeys(_source(value).get("tied", ()), path)
        self.kept[value.name or ""] = path, kind
        return path

    def _as_trained(self, value: ir.Value, data: torch.Tensor) -> torch.Tensor:
        """A constant as a parameter or as a buffer."""
        if self._relative(value):
            return data.clone()  # a state dict has it: it must not change with the graph
        if not trainable(value, self.learned):
            return data
        kept = torch.nn.Parameter(data if data.is_floating_point() else data.float())
        disown_before_update(kept)
        return kept

    def _relative(self, value: ir.Value) -> bool:
        """Whether a constant is a scale that learns by relative steps."""
        floats = value.dtype is not None and value.dtype.is_floating_point()
        return self.learned == "steps" and floats and is_scale(value) and trainable(value, self.learned)

    def step(self, value: ir.Value) -> str | None:
        """The path of the logarithm of what a learned scale is multiplied by; None for another value."""
        return self._steps.get(id(value))

    def module(
        self, graph: fx.Graph, name: str = "GraphModule", unused: Mapping[str, Any] | None = None
    ) -> fx.GraphModule:
        """The module of a graph; ``unused`` is state besides that (see ``keys.UNUSED``)."""
        module = fx.GraphModule(self.root, graph, name)
        for key, (role, dtype, data) in (unused or {}).items():
            tensor = torch.tensor(data, dtype=getattr(torch, dtype))
            place(module, key, torch.nn.Parameter(tensor) if role == "parameter" else tensor)
        settle = functools.partial(_settle, tied=self._tied, temporary=self._temporary)
        settle(module)
        module._register_deepcopy_hook(settle)
        if self._folded:
            state_dicts.keep_apart(module, self._folded)
        return module


def _settle(module: fx.GraphModule, *, tied: Mapping[str, str], temporary: Sequence[str]) -> None:
    """What a GraphModule forgets of its root: names that nothing in the graph goes by, and which buffers go unsaved."""
    for other, path in tied.items():
        holder, names = _place(module, other)
        if ".".join(names) == other:
            holder.register_parameter(names[-1], module.get_parameter(path))
    for path in temporary:
        parent, _, leaf = path.rpartition(".")
        holder = module.get_submodule(parent)
        holder.register_buffer(leaf, holder._buffers.pop(leaf), persistent=False)


def share(value: ir.Value) -> torch.Tensor:
    """The tensor of a constant, in the memory that the graph has it in."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return dtypes.from_numpy(tensor.numpy(), tensor.dtype.name)


def _source(value: ir.Value) -> dict[str, Any]:
    return SOURCE.get(value) or {}


def form(value: ir.Value) -> str:
    """What a value is of torch's parameter, as the frontend noted it: "", "transpose", "view" or "computed" from it.

    Where several constants come from one parameter, they are it as long as each is it in one of these forms.
    """
    kind = _form(value)
    return "computed" if _source(value).get("shared") and not _is_one(value, kind) else kind


def _form(value: ir.Value) -> str:
    source, done = _source(value), [s for s in steps(value) if s != SCALED]
    matrix = value.shape is not None and len(value.shape) == 2
    if matrix and len(done) > 1 and set(done) == {"transpose"}:
        done = done[: len(done) % 2]
    if _SAME.issuperset(done):
        return ""
    if done == ["transpose"] and matrix:
        return "transpose"
    return "view" if "shape" in source else "" if _VIEWS.issuperset(done) else "computed"


def _is_one(value: ir.Value, kind: str) -> bool:
    """Whether all constants that come from a value's parameter still hold its numbers; ``kind`` is the value's form."""
    graph, parameter = value.graph, _source(value)["parameter"]
    known = graph.initializers.values() if graph is not None else ()
    others = [v for v in known if v is not value and _source(v).get("parameter") == parameter]
    if not others or any(v.metadata_props.get(ROLE) != "parameter" or SCALED in steps(v) for v in (value, *others)):
        return False
    kinds = [kind, *map(_form, others)]
    if "computed" in kinds:
        return False
    first, *rest = (_kept(v, k) for v, k in zip((value, *others), kinds, strict=True))
    return all(t.shape == first.shape and t.dtype == first.dtype and torch.equal(t, first) for t in rest)


def _kept(value: ir.Value, kind: str) -> torch.Tensor:
    """The tensor of a constant as torch keeps it."""
    data = share(value)
    if kind == "transpose":
        return data.t()
    return data.reshape(tuple(_source(value).get("shape", data.shape))) if kind == "view" else data


def parametrized(value: ir.Value) -> tuple[str, ...]:
    """The parameters and buffers that a weight was computed from by the module itself, such as by a weight norm."""
    source = _source(value)
    return () if "batchnorm" in steps(value) or "shared" in source else (source["parameter"], *source.get("others", ()))


def torch_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant as torch keeps it."""
    assert value.shape is not None
    shape = value.shape.numpy()
    return shape[::-1] if form(value) == "transpose" else tuple(_source(value).get("shape", shape))


def restored(graph: fx.Graph, stored: fx.Node, value: ir.Value) -> fx.Node:
    """What the graph has of a constant as torch keeps it."""
    kind = form(value)
    if kind == "transpose":
        return graph.call_function(torch.t, (stored,))
    return (
        graph.call_function(torch.reshape, (stored, list(value.shape.numpy())))
        if kind == "view" and value.shape
        else stored
    )


def trainable(value: ir.Value, learned: str = "") -> bool:
    """Whether a constant is a parameter: noted so, or a float tensor of a rank that is neither statistics nor scale.

    ``learned`` says what of Q/DQ is (see ``Options``).
    """
    role = value.metadata_props.get(ROLE)
    statistics = [_statistic(u.node, u.idx) for u in value.uses()]
    if value.dtype is None or (value.dtype.is_floating_point() and value.dtype.bitwidth < 16):
        return False
    if any(statistics):
        known = bool(learned) and not {"BatchNormalization", "table"} & set(statistics)
        return known and (learned == "scales" or value.dtype.is_floating_point() or movable(value))
    if not value.dtype.is_floating_point():
        return False
    return role == "parameter" if role else value.is_initializer() and value.shape is not None and len(value.shape) > 0


def is_scale(value: ir.Value) -> bool:
    """Whether a constant is the scale of what encodes or decodes, for all its readers."""
    return all(u.idx == quantized.SCALE and _statistic(u.node, u.idx) == "parameter" for u in value.uses())


def movable(value: ir.Value) -> bool:
    """Whether training may move a zero point: that of an activation, off the ends and the centre of its codes.

    At an end it may stand for a Relu, at the centre the grid is symmetric on purpose, and a weight's must suit kernels.
    """
    tensor = ir.convenience.get_const_tensor(value)
    encoders = [u.node for u in value.uses() if quantized.encodes(u.node)]
    if tensor is None or not encoders or any(edit.is_constant(n.inputs[0]) for n in encoders):
        return False
    low, high = dtypes.integer_range(tensor.dtype.name)
    centre = (low + high + 1) // 2
    return not np.isin(tensor.numpy().astype(np.int64), (low, centre, high)).any()


def stepped(scale: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A scale times the exponential of a learned tensor: itself, to the bit, where that is 0."""
    return scale * torch.exp(steps)


def _statistic(node: ir.Node, slot: int) -> str:
    """What a float constant is, if it is nothing that training moves as it moves weights."""
    if node.op_type == "BatchNormalization" and slot in (3, 4):
        return node.op_type
    if slot == 0 or not (quantized.encodes(node) or quantized.decodes(node)):
        return ""
    return "parameter" if not node.domain or slot == quantized.SCALE else "table"


def disown_before_update(parameter: torch.nn.Parameter) -> None:
    """Give a parameter memory of its own when its first gradient arrives, before any optimiser can write to it."""

    def disown(p: torch.Tensor) -> None:
        p.data = p.data.clone()
        handle.remove()

    handle = parameter.register_post_accumulate_grad_hook(disown)


def disown(module: torch.nn.Module) -> None:
    """Give every parameter and buffer memory of its own: to be called before one is written in place by hand."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def place(root: torch.nn.Module, name: str, tensor: torch.Tensor) -> str:
    """Register ``tensor`` under a dotted name, in modules made for its parts; the path it got in the end."""
    module, path = _place(root, name or "constant")
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(path[-1], tensor)
    else:
        module.register_buffer(path[-1], tensor)
    return ".".join(path)


def place_module(root: torch.nn.Module, name: str, module: torch.nn.Module) -> str:
    """Register a module under a dotted name, or one that is free; the name it got."""
    holder, path = _place(root, name or "kernel")
    holder.add_module(path[-1], module)
    return ".".join(path)


def _place(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, list[str]]:
    """Where something of this name shall be: the module for it, and a path to it that is free.

    fx writes names into Python source as they are: what could end a string there must not stand in one.
    """
    name = _UNSAFE.sub("_", name)
    *folders, leaf = name.split(".") if all(name.split(".")) else [name.replace(".", "_")]
    path = []
    for folder in folders:
        folder = next(n for n in _names(folder) if n in module._modules or not hasattr(module, n))
        if folder not in module._modules:
            module.add_module(folder, torch.nn.Module())
        module = module.get_submodule(folder)
        path.append(folder)
    return module, [*path, next(n for n in _names(leaf) if not hasattr(module, n))]


def _names(name: str) -> Iterator[str]:
    """A name as Python can have it behind a dot, and others if that is taken."""
    if not keyword.iskeyword(name):
        yield name
    yield from (f"{name}_{i}" for i in itertools.count(1))
