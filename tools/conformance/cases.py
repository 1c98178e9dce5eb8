"""The cases of ``onnx.backend.test``: node, simple, pytorch-converted, pytorch-operator and the light models."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
_RANDOM = ("Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")


@dataclass(frozen=True)
class Case:
    """One model with data.

    Attributes:
        op: The operator it is about: domain and op type of the first node of a node test; "" for a whole model.
        sets: Pairs of inputs and expected outputs, in the order of the graph's.
        group: ``core`` or what sets it apart from the bar: training, sequence, optional, string; also random (numbers
            are drawn: only types and shapes are compared), ml and preview (other domains).
    """

    name: str
    kind: str
    op: str
    group: str
    model: onnx.ModelProto
    sets: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float


def cases(kinds: Sequence[str] = KINDS, op: str | None = None) -> Iterator[Case]:
    """The cases of some kinds, of one operator if asked for.

    A node test whose operator is written out in simpler ones (``..._expanded``) counts for the operator.
    """
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for kind in kinds:
            ops: dict[str, str] = {}
            for raw in load_model_tests(kind=kind):
                model = raw.model or onnx.load(_path(raw))
                about = _about(raw.name, model, kind, ops)
                if op is None or op in (about, about.rpartition("::")[2]):
                    sets = raw.data_sets or list(_stored(raw, model))
                    yield Case(raw.name, kind, about, _group(model), model, sets, raw.rtol, raw.atol)


def _path(raw: Any) -> Path:
    if raw.model_dir is not None:
        return Path(raw.model_dir) / "model.onnx"
    return Path(onnx.__file__).parents[1] / raw.url


def _about(name: str, model: onnx.ModelProto, kind: str, ops: dict[str, str]) -> str:
    node = model.graph.node[0]
    plain = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if kind == "real":
        return "light models"
    whole = re.sub(r"_expanded(_ver\d+)?$", "", name)
    return ops.get(whole, plain) if whole != name else ops.setdefault(name, plain)


def _group(model: onnx.ModelProto) -> str:
    nodes = list(model.graph.node)
    domains = {o.domain for o in model.opset_import}
    if "ai.onnx.preview.training" in domains or any(_trains(n) for n in nodes):
        return "training"
    if "ai.onnx.ml" in domains:
        return "ml"
    if any(d.startswith("ai.onnx.preview") for d in domains):
        return "preview"
    if any(n.op_type.startswith(_RANDOM) or _drops(n) for n in nodes):
        return "random"
    return _values_group(model, {n.op_type for n in nodes})


def _values_group(model: onnx.ModelProto, ops: set[str]) -> str:
    values = [*model.graph.input, *model.graph.output]
    kinds = {v.type.WhichOneof("value") for v in values}
    typed = any(a.type == onnx.AttributeProto.TYPE_PROTO for n in model.graph.node for a in n.attribute)
    if "optional_type" in kinds or typed or any(o.startswith("Optional") for o in ops):
        return "optional"
    if "sequence_type" in kinds or any("Sequence" in o for o in ops):
        return "sequence"
    strings = any(v.type.tensor_type.elem_type == onnx.TensorProto.STRING for v in values)
    if strings or any(o.startswith(("String", "RegexFull", "TfIdf")) for o in ops):
        return "string"
    return "core"


def _trains(node: onnx.NodeProto) -> bool:
    """Whether a node is asked for its behaviour in training."""
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def _drops(node: onnx.NodeProto) -> bool:
    """Whether a Dropout is told at run time to drop: it has a third input."""
    return node.op_type == "Dropout" and len(node.input) > 2


def _stored(raw: Any, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    if raw.model_dir is None:
        yield _light(_path(raw), model, raw.model_name)
        return
    for folder in sorted(Path(raw.model_dir).glob("test_data_set_*")):
        yield _read(folder, "input", model.graph.input), _read(folder, "output", model.graph.output)


def _read(folder: Path, kind: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    files = [(folder / f"{kind}_{i}.pb", value) for i, value in enumerate(values)]
    return [_load(path, value) for path, value in files if path.exists()]


def _light(path: Path, model: onnx.ModelProto, name: str) -> tuple[list[Any], list[Any]]:
    """A light model's made-up input, and the output stored with it."""
    from onnx.backend.test.runner import Runner

    stored = {i.name for i in model.graph.initializer}
    given = [v for v in model.graph.input if v.name not in stored]
    inputs = [Runner.generate_dummy_data(v, seed=0, name=name, random=False) for v in given]
    expected = numpy_helper.to_array(onnx.load_tensor(str(path.with_name(f"{path.stem}_output_0.pb"))))
    return inputs, [expected]


def _load(path: Path, value: onnx.ValueInfoProto) -> Any:
    content = path.read_bytes()
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if value.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))
