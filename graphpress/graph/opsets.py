"""Raise a model's opset. Most operators only gained types between versions: those nodes are left as they are; a node
whose signature or meaning changed is converted alone, by a rule of ours (``opset_rules``) or by onnx's own converter,
and spliced back, so names, metadata, subgraphs and functions survive, which a conversion of the whole model does not
grant. docs/figures/opsets.md shows for every operator and every older opset that the meaning is kept."""

from __future__ import annotations

import functools

import onnx
import onnx.version_converter
import onnx_ir as ir

from graphpress.errors import Unsupported
from graphpress.graph import edit, opset_rules

# Same signature, other meaning, from this version on: the schemas do not show it.
_MEANING = {
    "Softmax": (13,),
    "LogSoftmax": (13,),
    "Hardmax": (13,),
    "GroupNormalization": (21,),
    "BatchNormalization": (9, 14),
    "Resize": (11,),
    "Dropout": (12,),
    "Split": (18,),
    "Upsample": (10,),
    "GridSample": (20,),
}


def require(model: ir.Model, version: int) -> None:
    """Raise the default domain's opset to at least ``version``, converting the nodes whose meaning changed.

    Raises:
        Unsupported: A node cannot be converted; the model is then unchanged.
    """
    if edit.opset(model) < version:
        convert(model, version)


def convert(model: ir.Model, version: int) -> None:
    """Raise the default domain to ``version`` in place.

    Raises:
        Unsupported: A node cannot be converted, or the installed onnx does not know the version; nothing is changed.
    """
    if version > onnx.defs.onnx_opset_version():
        raise Unsupported(
            f"opset {version} is newer than the installed onnx knows ({onnx.defs.onnx_opset_version()})",
            where="model",
            fix="Install a newer onnx, or choose a format that needs a lower opset.",
        )
    old = edit.opset(model)
    unify(model)
    roots: list[edit.Scope] = [model.graph, *model.functions.values()]
    parts = [_Part(root, old, version) for root in roots]
    # All of them before anything is written.
    for part in parts:
        part.prepare()
    for part in parts:
        part.write()
    model.opset_imports[""] = version
    model.ir_version = max(model.ir_version or 0, _ir_version(version))


def unify(model: ir.Model) -> None:
    """Let all functions of the model import the model's opset.

    What a body of another opset means is not agreed upon: ONNX reads it at its own opset, ONNX Runtime at the model's,
    and onnx's checker refuses it. It is taken where both are the same.

    Raises:
        Unsupported: An operator of a body means another thing at the model's opset; nothing is changed.
    """
    version = edit.opset(model)
    others = [f for f in model.functions.values() if f.opset_imports.get("", version) != version]
    for function in others:
        own = function.opset_imports[""]
        for node in function.all_nodes():
            if node.domain == "" and not _keeps(node, min(own, version), max(own, version)):
                raise Unsupported(
                    f"its body is of opset {own}, the model of {version}, and {node.op_type} means another thing there",
                    where=f"function {function.domain}::{function.name}",
                    fix="Export the model and its functions at one opset.",
                )
    for function in others:
        function.opset_imports[""] = version


def raise_function(function: ir.Function, version: int) -> None:
    """Raise the default domain of one function that imports it, where it is older.

    Raises:
        Unsupported: A node cannot be converted; the function is then unchanged.
    """
    if function.opset_imports.get("", version) < version:
        part = _Part(function, function.opset_imports[""], version)
        part.prepare()
        part.write()


def _keeps(node: ir.Node, old: int, version: int) -> bool:
    return opset_rules.rule(node, old, version) is None and _same(node.op_type, old, version)


class _Part:
    """A graph, or a function, with its bodies: the nodes of it that change."""

    def __init__(self, root: edit.Scope, old: int, version: int) -> None:
        self.root, self.old, self.version = root, old, version
        self.converted: list[tuple[edit.Scope, ir.Node, list[str | None], ir.Graph]] = []

    def prepare(self) -> None:
        """Convert, without writing. Input names are kept, as splicing one node in renames what the next one reads."""
        old, version = self.old, self.version
        for scope in edit.scopes(self.root):
            for node in scope:
                if node.domain == "" and not _keeps(node, old, version):
                    names = [v.name if v else None for v in node.inputs]
                    self.converted.append((scope, node, names, _convert_node(node, old, version)))

    def write(self) -> None:
        for scope, node, names, replacement in self.converted:
            _splice(scope, node, names, replacement)
        if isinstance(self.root, ir.Function) and "" in self.root.opset_imports:
            self.root.opset_imports[""] = self.version


def _ir_version(version: int) -> int:
    return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])  # noqa: TID251


@functools.cache
def _same(op_type: str, old: int, new: int) -> bool:
    """Whether a node valid at ``old`` means the same at ``new``."""
    try:
        a, b = (onnx.defs.get_schema(op_type, v, "") for v in (old, new))
    except onnx.defs.SchemaError:
        return False
    if b.deprecated or any(a.since_version < v <= b.since_version for v in _MEANING.get(op_type, ())):
        return False
    required = [i for i in b.inputs[len(a.inputs) :] if i.option == onnx.defs.OpSchema.FormalParameterOption.Single]
    gained = [n for n, attr in b.attributes.items() if attr.required and n not in a.attributes]
    return not (set(a.attributes) - set(b.attributes) or gained or required or len(b.inputs) < len(a.inputs))


def _convert_node(node: ir.Node, old: int, version: int) -> ir.Graph:
    """The nodes that replace ``node``, as a graph with the same input and output names."""
    if (rule := opset_rules.rule(node, old, version)) is not None:
        return rule(opset_rules.Draft(node, version), old, version)
    try:
        proto = onnx.version_converter.convert_version(_alone(node, old), version)
    except (RuntimeError, onnx.version_converter.ConvertError, ValueError) as e:
        raise Unsupported(
            f"{node.op_type} cannot be converted from opset {old} to {version}: {str(e).splitlines()[0]}",
            where=f"node {node.name!r}",
            fix=f"Export the model at opset {version} or higher.",
        ) from e
    return ir.from_proto(proto).graph


def _alone(node: ir.Node, old: int) -> onnx.ModelProto:
    """A model of this one node; small constant inputs come along, since some conversions need their values."""
    inputs, initializers = [], []
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = edit.constant_tensor(value)
        if tensor is not None and tensor.size <= 1024:
            initializers.append(
                ir.Value(
                    name=value.name,
                    shape=ir.Shape(tensor.shape.numpy()),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
            )
        else:
            inputs.append(_copy(value))
    known = {v.name: v for v in (*inputs, *initializers)}
    outputs = [_copy(v) for v in node.outputs]
    twin = ir.Node(
        "", node.op_type, [v and known[v.name] for v in node.inputs], node.attributes.values(), outputs=outputs
    )
    graph = ir.Graph(
        inputs,
        [o for o in outputs if o.name],
        nodes=[twin],
        initializers=initializers,
        opset_imports={"": old},
        name="one",
    )
    return ir.to_proto(ir.Model(graph, ir_version=8))


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type or ir.TensorType(ir.DataType.FLOAT))


def _splice(scope: edit.Scope, node: ir.Node, input_names: list[str | None], new: ir.Graph) -> None:
    outer: dict[str | None, ir.Value | None] = dict(zip(input_names, node.inputs, strict=True))
    for value in list(new.initializers.values()):
        if value.name not in outer:
            outer[value.name] = _hold(scope, node, value)
    results = {o.name for o in new.outputs}
    for made in list(new):
        names = [v.name if v is not None else None for v in made.inputs]
        twin = edit.new_node(
            made.op_type, [outer.get(n) if n else None for n in names], dict(made.attributes),
            before=node, outputs=len(made.outputs), origin=node,
        )  # fmt: skip
        for old_value, value in zip(made.outputs, twin.outputs, strict=True):
            outer[old_value.name] = value
    edit.supersede(node, [outer[o.name] if o.name in results else None for o in node.outputs], metadata=False)


def _hold(scope: edit.Scope, node: ir.Node, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    if isinstance(scope, ir.Graph):
        return edit.add_const(scope, value.const_value, value.name or "const")
    return edit.new_node("Constant", [], {"value": value.const_value}, before=node, origin=node).outputs[0]
