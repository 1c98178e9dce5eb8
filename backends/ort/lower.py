"""From the canonical quantized graph to the forms that ONNX Runtime runs fast. Every rule is one file in ``rules``.

The first rule that applies to a node takes it; the last one sees to weights that no kernel reads as stored. Static
Q/DQ around Conv, Add and the like stays: ONNX Runtime makes its own kernels of it. The graph keeps its opset: passes
raise it only when a type needs it, and ONNX Runtime 1.32 fuses the same patterns at every opset from 13 on (probed).
"""

from __future__ import annotations

import onnx_ir as ir

from graphpress.backends.ort import emit, masks
from graphpress.backends.ort.lowering import rules
from graphpress.backends.ort.session import Session, execute
from graphpress.errors import Unsupported
from graphpress.graph import edit, half, half_storage, widening
from graphpress.keys import STAGE, TARGET
from graphpress.ops import dense_packing, packing
from graphpress.target import Target
from graphpress.types import Stage


def lower(model: ir.Model, target: Target) -> ir.Model:
    """A new model for ``target``, subgraphs included; the given one is left as it is.

    What is in half precision is computed in float32, and its float weights are stored as halves. What was lowered for
    this target already is copied. Nodes keep their names; helpers carry ``graphpress.from``.

    Raises:
        Unsupported: The model was lowered for another target.
    """
    result = model.clone()
    if STAGE.get(result) is Stage.LOWERED:
        if result.metadata_props.get(TARGET) != target.name:
            raise Unsupported(f"the model was lowered for {result.metadata_props.get(TARGET)!r}", where=target.name)
        return result
    edit.index(result)
    if half.found(result):
        widening.widen(result)
    patterns, narrow = packing.unpack(result), dense_packing.unpack(result)
    shared = emit.Shared()
    for node in list(edit.nodes(result)):
        if node.graph is not None:
            any(rule(node, target, shared) for rule in rules())
    masks.expand(result)
    packing.pack_all(result, patterns)
    dense_packing.pack_all(result, narrow)
    half_storage.store(result)
    used = {n.op_identifier() for n in edit.nodes(result)}
    for identifier in result.functions.keys() - used:
        del result.functions[identifier]
    if any(domain == emit.CONTRIB for domain, *_ in used):
        result.opset_imports.setdefault(emit.CONTRIB, 1)
    STAGE.set(result, Stage.LOWERED)
    result.metadata_props[TARGET] = target.name
    return result


def deploy(model: ir.Model, target: Target) -> Session:
    """A lowered model as the only one of its process: threads may spin between runs."""
    return execute(model, target=target, spinning=True)
