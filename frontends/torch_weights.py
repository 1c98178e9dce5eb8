"""Parameters through constant folding: what was computed from which, so that the results get the parameters' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphpress.frontends.torch_names import unique
from graphpress.keys import ROLE, SOURCE, UNUSED, steps

_SIZES = {"Shape", "Size"}  # read a weight, but not its values
_MOVES = {
    "Cast",
    "CastLike",
    "Expand",
    "Flatten",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}  # fmt: skip - the first operand comes out; the others say how
_LAYERS = {"Conv", "ConvTranspose", "Gemm"}
_SMALL = 16  # elements up to which a tensor that is not read is kept
_VIEWS = {"reshape", "flatten", "squeeze", "unsqueeze", "identity", "cast", "castlike"}  # keep the elements' order


@dataclass(frozen=True)
class _Origin:
    """Parameters, in the order they are read, and the operators on the way from them."""

    parameters: tuple[str, ...]
    transform: tuple[str, ...] = ()


@dataclass
class Weights:
    """The parameters of a model, as the exporter wrote it: before anything is folded, and with functions inlined.

    ``tied`` has for each parameter the first name of its tensor, ``roles`` what it is to its module.
    """

    model: ir.Model
    tied: Mapping[str, str]
    roles: Mapping[str, str]
    tensors: dict[str, ir.TensorProtocol] = field(init=False)  # by parameter name
    origins: dict[str, _Origin] = field(init=False)  # by name of a value that a fold makes an initializer
    normed: dict[str, tuple[str, tuple[str, ...]]] = field(init=False)  # of a layer before a BatchNorm: see _note_norm

    def __post_init__(self) -> None:
        initializers = self.model.graph.initializers
        self.tensors = {n: v.const_value for n, v in initializers.items() if v.const_value is not None}
        self.origins, self.normed = {n: _Origin((self.tied.get(n, n),)) for n in self.tensors}, {}
        constants: set[str] = set()
        for node in self.model.graph:
            self._follow(node, constants)
            if node.op_type == "BatchNormalization":
                self._note_norm(node)

    def _follow(self, node: ir.Node, constants: set[str]) -> None:
        """Note what a node computes from parameters and constants alone."""
        names = [v.name or "" for v in node.inputs[: 1 if node.op_type in _MOVES else None] if v is not None]
        results = [o.name or "" for o in node.outputs]
        if node.op_type in _SIZES:
            constants.update(results if names[0] in self.origins else ())
        elif all(n in self.origins or n in constants for n in names):
            sources = [self.origins[n] for n in names if n in self.origins]
            parameters = dict.fromkeys(p for s in sources for p in s.parameters)
            steps = [
                *(t for s in sources for t in s.transform),
                *([] if _changes_nothing(node) else [node.op_type.lower()]),
            ]
            if sources:
                steps = steps if len(sources) == 1 else list(dict.fromkeys(steps))
                self.origins |= dict.fromkeys(results, _Origin(tuple(parameters), tuple(steps)))
            else:
                constants.update(results)

    def _note_norm(self, norm: ir.Node) -> None:
        """Note weight and bias of the layer before: what they are to be called, and what gets folded into them."""
        layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if layer is None or layer.op_type not in _LAYERS or layer.inputs[1] is None:
            return
        weight = layer.inputs[1].name or ""
        bias = f"{weight.removesuffix('weight')}bias"
        scale, shift, mean, variance = (v.name or "" for v in norm.inputs[1:5] if v is not None)
        self.normed[weight] = weight, (scale, variance)
        self.normed[f"{weight}_bias"] = bias, (shift, scale, mean, variance)  # the rule's name where there was none
        if len(layer.inputs) > 2 and layer.inputs[2] is not None:
            self.normed[layer.inputs[2].name or ""] = self.normed[f"{weight}_bias"]

    def should_fold(self, node: ir.Node) -> bool | None:
        """For the constant folder: whatever is computed from parameters, but no second copy of one that stays."""
        if not self._computed(node):
            return None
        parameters = [v for v in node.inputs if v is not None and v.name in self.tensors]
        return all(self._computed(user) for v in parameters for user in v.consumers())

    def _computed(self, node: ir.Node) -> bool:
        return all((o.name or "") in self.origins for o in node.outputs)

    def restore(self, model: ir.Model) -> None:
        """Name initializers after their parameters, note what they are, and take their values off torch."""
        initializers = list(model.graph.initializers.values())
        taken = {v.name or "" for v in initializers} | _value_names(model)
        found = [self._origin(value) for value in initializers]
        readers = Counter(p for _, origin in found if origin is not None for p in origin.parameters)
        for value, (name, origin) in zip(initializers, found, strict=True):
            value.metadata_props.clear()
            value.metadata_props[ROLE] = "temporary"
            if origin is not None:
                first = origin.parameters[0]
                value.metadata_props[ROLE] = self.roles.get(first, "temporary")
                if tag := self._tag(value, origin, shared=readers[first] > 1):
                    SOURCE.set(value, tag)
            if value.name != name:
                value.name = unique(name, taken)
        for value in model.graph.initializers.values():
            value.const_value = _plain(value)
            if "batchnorm" in steps(value):
                _retype(value, self.tensors)

    def _tag(self, value: ir.Value, origin: _Origin, *, shared: bool) -> dict[str, Any]:
        """Where a value comes from (keys.SOURCE); empty: a parameter as it is. ``shared``: others come from it too."""
        first, *more = origin.parameters
        same = [name for name, whose in self.tied.items() if whose == first and name != first]
        tag: dict[str, Any] = {
            "parameter": first, "transform": "+".join(origin.transform), "others": more, "tied": same, "shared": shared
        }  # fmt: skip
        tensor = next(t for name, t in self.tensors.items() if self.tied.get(name, name) == first)
        if value.shape != tensor.shape and _VIEWS.issuperset(origin.transform):
            tag["shape"] = list(tensor.shape.numpy())
        return {k: v for k, v in tag.items() if v} if origin.transform or same or shared else {}

    def _origin(self, value: ir.Value) -> tuple[str, _Origin | None]:
        """What an initializer is to be called, and where it comes from."""
        name = value.name or ""
        origin = self.origins.get(name)
        if name in self.normed and value.const_value is not self.tensors.get(name, self):
            wanted, norm = self.normed[name]
            if origin is None:
                return wanted, _Origin(norm, ("batchnorm",))
            origin = _Origin((*origin.parameters, *norm), (*origin.transform, "batchnorm"))
        return (origin.parameters[0] if origin else name), origin


def weights(model: ir.Model, program: Any) -> Weights:
    """The parameters of a model that was made from an ExportedProgram."""
    known = _tied(program)
    return Weights(model, known, _roles(program, known))


def note_unused(model: ir.Model, program: Any) -> None:
    """Note small parameters and buffers that inference does not read, such as BatchNorm's count of batches.

    ``metadata_props["graphpress.unused"]`` is JSON, {name: [role, torch type, numbers]}; a module made from the graph
    has them, so that state dicts have the same keys. Those of a module that is gone are left out.
    """
    parts = {name.rpartition(".")[0] for name in model.graph.initializers}
    used, tied = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}, _tied(program)
    specs = [s for s in program.graph_signature.input_specs if s.target in program.state_dict]
    read = {tied.get(s.target, s.target) for s in specs if s.arg.name in used}
    found = {}
    for spec in specs:
        tensor = program.state_dict[spec.target]
        if tied.get(spec.target, spec.target) in read or tensor.numel() > _SMALL or tensor.is_complex():
            continue
        if spec.target.rpartition(".")[0] in parts:
            role = "parameter" if spec.kind.name == "PARAMETER" else "buffer"
            found[spec.target] = [role, str(tensor.dtype).removeprefix("torch."), tensor.tolist()]
    if found:
        UNUSED.set(model, found)


def _changes_nothing(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm", None) if node.op_type == "Transpose" else None
    return node.op_type == "Identity" or (perm is not None and list(perm) == sorted(perm))


def _roles(program: Any, tied: Mapping[str, str]) -> dict[str, str]:
    """What each parameter, buffer and constant is to a state dict: parameter, buffer, or temporary, which it lacks."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            role = "parameter" if spec.kind.name == "PARAMETER" else "buffer" if spec.persistent else "temporary"
            found[spec.target] = found[tied.get(spec.target, spec.target)] = role
    return found


def _tied(program: Any) -> dict[str, str]:
    """For each parameter and buffer of an ExportedProgram, the first name under which its tensor is known."""
    first: dict[Any, str] = {}
    state = program.state_dict | {name: t for name, t in program.constants.items() if hasattr(t, "untyped_storage")}
    return {
        name: first.setdefault((t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride()), name)
        for name, t in state.items() if t.numel()
    }  # fmt: skip


def _value_names(model: ir.Model) -> set[str]:
    nodes = list(model.graph.all_nodes())
    return {v.name or "" for v in model.graph.inputs} | {o.name or "" for n in nodes for o in n.outputs}


def _plain(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor in the memory of the CPU, free of torch's classes; what lies there already is not copied."""
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def _retype(value: ir.Value, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """Give what was folded the layer's type: rules compute half floats in float32, and leave it at that."""
    weight, tensor = next(iter(value.uses())).node.inputs[1], value.const_value
    own = tensors.get(weight.name or "") if weight is not None else None
    if own is not None and tensor is not None and tensor.dtype != own.dtype:
        value.const_value = ir.Tensor(tensor.numpy().astype(own.dtype.numpy()), dtype=own.dtype, name=value.name)
        value.dtype = own.dtype


def drop_zero_biases(model: ir.Model, weights: Weights) -> None:
    """Drop the zeros that the exporter gives to layers without a bias; zeros that are a parameter stay."""
    for node in model.graph.all_nodes():
        bias = node.inputs[2] if node.op_type in _LAYERS and len(node.inputs) == 3 else None
        tensor = bias.const_value if bias is not None and (bias.name or "") not in weights.origins else None
        if tensor is not None and not np.any(tensor.numpy()):
            node.resize_inputs(2)


def name_constants(model: ir.Model) -> None:
    """Call initializers that are no parameters after the node and the operand that read them first."""
    named: dict[ir.Value, str] = {}
    for node in model.graph.all_nodes():
        for slot, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                named.setdefault(value, f"{node.name}.{_operand(model, node, slot)}")
    taken = set(model.graph.initializers) | _value_names(model)
    for value, name in named.items():
        if (value.name or "").startswith("val_") and not value.is_graph_output():
            value.name = unique(name, taken)


def _operand(model: ir.Model, node: ir.Node, slot: int) -> str:
    """What the standard calls an operand of a node."""
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return f"input_{slot}"
    formal = schema.inputs[min(slot, len(schema.inputs) - 1)].name
    return formal if slot < len(schema.inputs) else f"{formal}_{slot}"
