"""Models in ONNX Runtime: serialise, open a session, check what goes in, name what comes out."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as capi

from graphpress.backends.ort import brain_floats, masks, own_codes
from graphpress.backends.ort.lent import lend
from graphpress.errors import BadRequest, Unsupported, nearest
from graphpress.graph import widening
from graphpress.runner import Arrays
from graphpress.target import Target

INLINE_LIMIT = 1 << 30  # bytes of weights a protobuf may carry: it stops working at 2 GB, and every copy costs memory
_CPU = "CPUExecutionProvider"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
# A weight behind DequantizeLinear becomes a MatMulNBits, which by default (4) rounds activations that were left float.
_AS_WRITTEN = {"session.qdq_matmulnbits_accuracy_level": "0"}
# Moves signed weights of a graph that was not lowered: see ``moved_codes``. It does so on every x86, and costs a small
# convolutional network 40 % of its time where products are exact without it.
_EXACT = {"session.x64quantprecision": "1"}
_REFUSED = (capi.InvalidGraph, capi.NotImplemented, capi.Fail, capi.InvalidArgument, capi.InvalidProtobuf)
_FAILED = (*_REFUSED, capi.RuntimeException, capi.EPFail, RuntimeError)
_NUMPY: dict[str, Any] = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "bfloat16": ir.DataType.BFLOAT16.numpy(),
    "bool": np.bool_,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip


@dataclass(frozen=True)
class SessionOptions:
    """How a session is built.

    Attributes:
        optimise: Let ONNX Runtime rewrite the graph; off gives the reference semantics node by node.
        threads: Threads inside one operator; None leaves it to ONNX Runtime (one a core).
        spinning: Let threads spin between runs. Right for a process that runs one model; a compilation holds several
            sessions, and a pool that spins takes the cores from the one that works.
        save_optimised: Path for the graph that ONNX Runtime made of the model.
        profile: Path prefix for its profile.
        config: Further session config entries.
    """

    optimise: bool = True
    threads: int | None = None
    spinning: bool = False
    save_optimised: str = ""
    profile: str = ""
    config: dict[str, str] = field(default_factory=dict)

    def to_ort(self) -> ort.SessionOptions:
        """As ONNX Runtime takes them."""
        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self.optimise else level.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised; the log would only say it twice
        options.use_deterministic_compute = True
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.save_optimised:
            options.optimized_model_filepath = self.save_optimised
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = self.profile
        options.add_session_config_entry("session.force_spinning_stop", str(int(not self.spinning)))
        if not self.optimise:  # run once or twice: a thread that spins for work takes longer than to make the session
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in self.config.items():
            options.add_session_config_entry(key, value)
        return options


class Session:
    """A model that runs: named arrays in, named arrays out (a ``Runner``)."""

    def __init__(self, session: ort.InferenceSession, outputs: Sequence[str], lent: Arrays) -> None:
        self.session = session
        self._lent = lent  # the session reads them
        self.input_names: tuple[str, ...] = tuple(i.name for i in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(outputs)
        self._wanted = list(dict.fromkeys(outputs))
        self._inputs = {i.name: i for i in session.get_inputs()}
        self._optional = {i.name: i for i in session.get_overridable_initializers()}
        ends = (*session.get_inputs(), *session.get_outputs())
        self._brain_floats = any(end.type == brain_floats.TYPE for end in ends)
        self._run = ort.RunOptions()
        self._run.log_severity_level = 4

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Run once.

        Raises:
            BadRequest: An input is missing, unknown, of the wrong type or shape, or the model fails on these values.
        """
        self._check(feeds)
        if not self._wanted:
            return {}
        try:
            results = self._results(feeds)
        except _FAILED as e:
            what, where = _reason(e)
            shapes = ", ".join(f"{name} {tuple(np.shape(a))}" for name, a in feeds.items())
            raise BadRequest(f"the model failed on {shapes}: {what}", where=where) from e
        return dict(zip(self._wanted, results, strict=True))

    def _results(self, feeds: Arrays) -> list[Any]:
        if not self._brain_floats:
            return list(self.session.run(self._wanted, dict(feeds), self._run))
        given = {name: brain_floats.to_ort(array) for name, array in feeds.items()}
        return [brain_floats.from_ort(v) for v in self.session.run_with_ort_values(self._wanted, given, self._run)]

    def _check(self, feeds: Arrays) -> None:
        for name in self.input_names:
            if name not in feeds:
                raise BadRequest(
                    "the input is missing", where=f"input {name!r}", fix=f"Given: {', '.join(feeds) or 'none'}."
                )
        for name, array in feeds.items():
            info = self._inputs.get(name) or self._optional.get(name)
            if info is None:
                raise BadRequest(
                    "the model has no such input", where=f"input {name!r}", fix=nearest(name, self.input_names)
                )
            _check_array(info, array)


def _check_array(info: Any, array: np.ndarray) -> None:
    kind = re.fullmatch(r"tensor\((\w+)\)", info.type)
    if kind is None or not isinstance(array, np.ndarray):
        return  # sequences and optionals: ONNX Runtime's own check speaks
    want = _NUMPY.get(kind[1])
    if want is not None and array.dtype != want:
        raise BadRequest(f"is {array.dtype}, the model wants {np.dtype(want)}", where=f"input {info.name!r}")
    fits = len(info.shape) == array.ndim and all(
        not isinstance(d, int) or d == n for d, n in zip(info.shape, array.shape, strict=True)
    )
    if not fits and not _shape_unknown(info):
        wanted = ", ".join(str(d if d is not None else "?") for d in info.shape)
        raise BadRequest(f"has shape {array.shape}, the model wants ({wanted})", where=f"input {info.name!r}")


def _shape_unknown(info: Any) -> bool:
    return info.shape is None or len(info.shape) == 0


def execute(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    *,
    target: Target | None = None,
    threads: int | None = None,
    spinning: bool = False,
) -> Session:
    """The model as ONNX Runtime runs it, with its own graph optimisation.

    Args:
        model: Any valid model; one that names its own functions runs as it is.
        outputs: Values of the main graph to give instead of the graph's outputs.
        target: Where it shall run; the CPU provider when absent.
        threads: Threads inside one operator.
        spinning: Let threads spin between runs: faster for the only model of a process.

    Raises:
        BadRequest: ``outputs`` names a value that the main graph lacks.
        Unsupported: ONNX Runtime refuses the model (the message names the node), or lacks the target's provider.
    """
    config = _AS_WRITTEN | _EXACT if _saturates() else _AS_WRITTEN
    options = SessionOptions(threads=threads, spinning=spinning, config=config)
    return open_session(model, outputs, options, target)


@functools.cache
def _saturates() -> bool:
    """Whether sums of u8 x s8 products can be wrong on this machine."""
    return Target.load("ort-cpu").saturates


def open_session(
    model: ir.Model, outputs: Sequence[str] | None, options: SessionOptions, target: Target | None = None
) -> Session:
    """``execute`` with all options. What ONNX Runtime refuses in half precision is computed in float32."""
    try:
        return _open(model, outputs, options, target)
    except Unsupported as e:
        other = own_codes.apart(model) if own_codes.REFUSED in str(e) else widening.widened(model)
        if other is model:
            raise
    return _open(other, outputs, options, target)


def _open(model: ir.Model, outputs: Sequence[str] | None, options: SessionOptions, target: Target | None) -> Session:
    names, provider = _output_names(model, outputs), _provider(target, options.threads)
    model = masks.readable(model)
    bare, lent = lend(model) if provider[0] == _CPU else (model, {})
    with _serialised(bare, outputs and names, lent) as (data, folder):
        native = options.to_ort()
        native.add_external_initializers(list(lent), [ort.OrtValue.ortvalue_from_numpy(a) for a in lent.values()])
        if folder:
            native.add_session_config_entry(_EXTERNAL_FOLDER, folder)
        try:
            session = ort.InferenceSession(data, native, providers=[provider], disabled_optimizers=_disabled(model))
        except _FAILED as e:
            _refuse(model, e)
    if provider[0] not in session.get_providers():
        what = f"the session runs on {', '.join(session.get_providers())}, not on {provider[0]}"
        raise Unsupported(what, where=f"target {target.name!r}" if target else "")
    return Session(session, names, lent)


def _provider(target: Target | None, threads: int | None) -> tuple[str, dict[str, str]]:
    """The provider to ask for, with its options.

    Raises:
        Unsupported: The installed ONNX Runtime has no such provider; none other takes its place.
    """
    if target is None:
        return _CPU, {}
    if target.provider not in (there := ort.get_available_providers()):
        what = f"{target.provider} is not installed: ONNX Runtime {ort.__version__} has {', '.join(there)}"
        fix = f"Run `pip install {target.package}` in an environment of its own." if target.package else ""
        raise Unsupported(what, where=f"target {target.name!r}", fix=fix)
    more = {target.threads_option: str(threads)} if target.threads_option and threads else {}
    return target.provider, {**target.provider_options, **more}


def _disabled(model: ir.Model) -> list[str]:
    """What ONNX Runtime 1.32 must not do: folding a QuantizeLinear of 2 bits fails, or gives wrong values."""
    narrow = {ir.DataType.INT2, ir.DataType.UINT2}
    quantizers = (n for n in model.graph.all_nodes() if n.op_type == "QuantizeLinear" and n.domain == "")
    return ["ConstantFolding"] if any(n.outputs[0].dtype in narrow or _codes(n) in narrow for n in quantizers) else []


def _codes(node: ir.Node) -> ir.DataType | None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return zero.dtype if zero is not None else None


def _output_names(model: ir.Model, outputs: Sequence[str] | None) -> list[str]:
    if outputs is None:
        return [v.name or "" for v in model.graph.outputs]
    graph = model.graph
    known = {v.name for v in (*graph.inputs, *graph.initializers.values())} | {v.name for n in graph for v in n.outputs}
    for name in outputs:
        if name not in known:
            raise BadRequest(
                "the main graph has no such value", where=f"output {name!r}", fix=nearest(name, filter(None, known))
            )
    return list(outputs)


@contextlib.contextmanager
def _serialised(model: ir.Model, outputs: Sequence[str] | None, lent: Collection[str]) -> Iterator[tuple[bytes, str]]:
    """The model's bytes, and the folder of its external data ('' where the bytes hold all of it but what is lent)."""
    given = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value and n not in lent}
    if sum(t.nbytes for t in given.values()) <= INLINE_LIMIT:
        yield _to_proto(model, outputs, given).SerializeToString(), ""
        return
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        light = model.clone()
        stored = ir.external_data.convert_tensors_to_external(list(given.values()), folder, "weights.bin")
        for name, tensor in zip(given, stored, strict=True):
            light.graph.initializers[name].const_value = tensor
        yield _to_proto(light, outputs, {}).SerializeToString(), folder


def _to_proto(
    model: ir.Model, outputs: Sequence[str] | None, inline: Mapping[str, ir.TensorProtocol]
) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name in inline:
            _inline(tensor, inline[tensor.name])
    if outputs is not None:
        declared = {v.name: onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in proto.graph.output}
        del proto.graph.output[:]
        proto.graph.output.extend(declared.get(n) or onnx.ValueInfoProto(name=n) for n in dict.fromkeys(outputs))
    return proto


def _inline(tensor: onnx.TensorProto, held: ir.TensorProtocol) -> None:
    tensor.raw_data = held.tobytes()
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


_NODE = (r"In Node, \(\"([^\"]+)\"", r"node with name '([^']+)'", r"Name:'([^']+)'", r"Node \(([^)]+)\)", r"Node:(\S+)")


def _reason(error: Exception) -> tuple[str, str]:
    """(what ONNX Runtime says without its prefixes, the node that it says it of)."""
    text = str(error).split("Stacktrace", 1)[0]
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/\S+/(?=[\w.]+\.(?:cc|h)\b)", "", text).strip()
    found = next((m for p in _NODE if (m := re.search(p, text))), None)
    return " ".join(text.split())[:500].rstrip("."), f"node {found[1]!r}" if found else ""


def _refuse(model: ir.Model, error: Exception) -> NoReturn:
    what, where = _reason(error)
    if not where and (found := re.search(r"(\w+)\(-?\d+\) is not a registered|[Nn]ode input '([^']+)'", what)):
        kind, read = found.groups()
        guilty = (
            n for n in model.graph.all_nodes() if n.op_type == kind or any(v and v.name == read for v in n.inputs)
        )
        where = next((f"node {n.name!r}" for n in guilty), "")
    raise Unsupported(f"ONNX Runtime {ort.__version__} refuses the model: {what}", where=where) from error
