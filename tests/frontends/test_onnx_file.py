"""Loading: what the graph is afterwards, and that weights stay in the file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from graphpress.frontends import onnx_file, stored
from graphpress.graph import edit
from tests import kit

_T = onnx.TensorProto
TYPES = [t for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]
STORED = [(t, raw) for t in TYPES for raw in (True, False) if raw or t.bitwidth != 6]  # 6 bits have no typed form


def write(path: Path, model: onnx.ModelProto | str) -> Path:
    """Write a model, given as such or in ONNX text, as another program would."""
    proto = onnx.parser.parse_model(model) if isinstance(model, str) else model
    path.write_bytes(proto.SerializeToString())
    return path


def linear(n: int = 600) -> onnx.ModelProto:
    """x [1, n] times a weight [n, 2], which is big enough to stay in the file, plus a bias [2], which is not."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[1,{n}] x) => (float[1,2] y)'
        "{ h = MatMul(x, w)  y = Add(h, b) }"
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=(n, 2)).astype(np.float32), "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1], np.float32), "b"))
    return model


def names(model: ir.Model) -> list[str]:
    return [n.name or "" for n in edit.nodes(model)]


# -- weights


@pytest.mark.parametrize("size", [3, 4097])
@pytest.mark.parametrize(("dtype", "raw"), STORED, ids=str)
def test_initializers_of_every_type(tmp_path: Path, dtype: ir.DataType, size: int, raw: bool) -> None:
    low = int(dtype.is_floating_point())  # float8e8m0 has no zero, int2 no 2
    array = np.random.default_rng(0).integers(low, low + 2, size).astype(dtype.numpy())
    tensor = onnx.numpy_helper.from_array(array, "w")
    if not raw:
        tensor = _typed(tensor, dtype)
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 13]> g () => (y) { y = Identity(w) }')
    model.graph.initializer.append(tensor)
    loaded = onnx_file.load(write(tmp_path / "m.onnx", model)).graph.initializers["w"].const_value
    assert loaded is not None
    assert (loaded.dtype, loaded.shape.numpy(), loaded.nbytes) == (dtype, (size,), -(-size * dtype.bitwidth // 8))
    np.testing.assert_array_equal(loaded.numpy().view(np.uint8), array.view(np.uint8))
    assert loaded.tobytes() == onnx.numpy_helper.from_array(array).raw_data


def _typed(tensor: onnx.TensorProto, dtype: ir.DataType) -> onnx.TensorProto:
    """The same tensor in the typed field instead of raw bytes."""
    raw, D = tensor.raw_data, ir.DataType
    fields = {
        D.FLOAT: ("float_data", "<f4"), D.COMPLEX64: ("float_data", "<f4"), D.DOUBLE: ("double_data", "<f8"),
        D.COMPLEX128: ("double_data", "<f8"), D.INT64: ("int64_data", "<i8"), D.UINT64: ("uint64_data", "<u8"),
        D.UINT32: ("uint64_data", "<u4"), D.INT32: ("int32_data", "<i4"), D.INT16: ("int32_data", "<i2"),
        D.UINT16: ("int32_data", "<u2"), D.FLOAT16: ("int32_data", "<u2"), D.BFLOAT16: ("int32_data", "<u2"),
    }  # fmt: skip
    field, kind = fields.get(dtype, ("int32_data", "u1"))
    typed = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    getattr(typed, field).extend(np.frombuffer(raw, kind).tolist())
    return typed


def test_strings(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g () => (string[2] y) { y = Identity(w) }'
    )
    model.graph.initializer.append(_T(name="w", data_type=_T.STRING, dims=[2], string_data=[b"a", "ü".encode()]))
    value = onnx_file.load(write(tmp_path / "m.onnx", model)).graph.initializers["w"]
    assert value.const_value is not None
    assert value.const_value.numpy().tolist() == [b"a", "ü".encode()]


def test_big_weights_stay_in_the_file_and_small_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SMALL", 0)  # map also this file
    proto = linear()
    model = onnx_file.load(write(tmp_path / "m.onnx", proto))
    weight, bias = (model.graph.initializers[n].const_value for n in "wb")
    assert isinstance(weight, stored.StoredTensor) and not isinstance(bias, stored.StoredTensor)
    array = weight.numpy()
    np.testing.assert_array_equal(array, onnx.numpy_helper.to_array(proto.graph.initializer[0]))
    assert not array.flags.writeable and array.flags.aligned


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(stored, "SMALL", small)
    proto = linear()
    want = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer]
    (tmp_path / "below").mkdir()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="below/w.bin", size_threshold=0)
    model = onnx_file.load(tmp_path / "m.onnx")
    for name, array in zip("wb", want, strict=True):
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, stored.StoredTensor)
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_external_data_in_constants_and_subgraphs(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (bool c) => (float[2] y)'
        "{ k = Constant <value = float[2] {1, 2}> ()"
        "  y = If (c) <then_branch = t () => (float[2] a) <float[2] v = {3, 4}> { a = Add(k, v) },"
        "              else_branch = e () => (float[2] b) { b = Neg(k) }> }"
    )
    (tmp_path / "w.bin").write_bytes(np.array([5, 6, 7, 8], "<f4").tobytes())
    for i, tensor in enumerate((model.graph.node[0].attribute[0].t, model.graph.node[1].attribute[0].g.initializer[0])):
        for field in ("float_data", "raw_data"):
            tensor.ClearField(field)
        tensor.data_location = _T.EXTERNAL
        for key, value in {"location": "w.bin", "offset": str(8 * i), "length": "8"}.items():
            tensor.external_data.add(key=key, value=value)
    loaded = onnx_file.load(write(tmp_path / "m.onnx", model))
    out = {c: kit.run(loaded, {"c": np.array(c)})["y"].tolist() for c in (True, False)}
    assert out == {True: [12, 14], False: [-5, -6]}


def test_loading_grows_with_the_model_and_no_faster(zoo: Path) -> None:
    """ResNet-56 has 2.8 times the nodes of ResNet-20."""
    paths = [zoo / "cifar10" / f"resnet{depth}.onnx" for depth in (20, 56)]
    nodes = [len(onnx.load(p).graph.node) for p in paths]
    small, large = (kit.calls(partial(onnx_file.load, p)) for p in paths)
    assert large / small < 1.1 * nodes[1] / nodes[0]


# -- inputs that have an initializer


def with_inputs(ir_version: int, *listed: str) -> onnx.ModelProto:
    model = linear(8)
    model.ir_version = ir_version
    if ir_version < 4:
        model.opset_import[0].version = 8
    for tensor in model.graph.initializer:
        if tensor.name in listed:
            value = model.graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = tensor.data_type
            for n in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=n)
    return model


@pytest.mark.parametrize(
    ("ir_version", "listed", "freeze", "inputs"),
    [
        (3, "wb", None, "x"),  # the IR version demands the listing
        (3, "wb", False, "x"),
        (4, "wb", None, "x"),  # all weights listed: an exporter's habit
        (4, "wb", False, "xwb"),
        (4, "b", None, "xb"),  # one listed: a default that may be overridden
        (4, "w", None, "xw"),
        (4, "b", True, "x"),
        (8, "", None, "x"),
    ],
)
def test_initializers_that_are_inputs(
    tmp_path: Path, ir_version: int, listed: str, freeze: bool | None, inputs: str
) -> None:
    path = write(tmp_path / "m.onnx", with_inputs(ir_version, *listed))
    model = onnx_file.load(path, freeze_inputs=freeze)
    assert [v.name for v in model.graph.inputs] == list(inputs)
    for name in "wb":
        assert edit.is_constant(model.graph.initializers[name]) == (name not in inputs)
    onnx_file.save(model, path)
    onnx.checker.check_model(path)
    assert [v.name for v in onnx_file.load(path, freeze_inputs=False).graph.inputs] == list(inputs)


def test_a_default_alone_is_no_habit(tmp_path: Path) -> None:
    source = '<ir_version: 4, opset_import: ["" : 9]> g (float[2] x, float[1] t) => (float[2] y) <float[1] t = {1}>'
    model = onnx_file.load(write(tmp_path / "m.onnx", source + "{ y = Mul(x, t) }"))
    assert [v.name for v in model.graph.inputs] == ["x", "t"]


def test_ultraface_has_one_input_and_constant_weights(zoo: Path) -> None:
    model = onnx_file.load(zoo / "detection" / "ultraface" / "version-slim-320.onnx")
    assert [v.name for v in model.graph.inputs] == ["input"]
    assert all(edit.is_constant(n.inputs[1]) for n in model.graph if n.op_type == "Conv")


# -- names and order


def test_node_names_become_unique_and_are_the_same_each_time(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x, bool c) => (float[2] y) {'
        "a = Relu(x) [twin] b = Relu(a) [twin] d = Relu(b) [Neg_5] e = Neg(d)"
        "y = If (c) <then_branch = t () => (float[2] p) { [twin] p = Relu(e) },"
        "            else_branch = f () => (float[2] q) { q = Neg(e) }> }",
    )
    expected = ["Relu_0", "twin", "twin_1", "Neg_5", "If_4", "twin_2", "Neg_6"]
    assert names(onnx_file.load(path)) == expected
    assert names(onnx_file.load(path)) == expected
    model = onnx_file.load(path)
    onnx_file.save(model, path)
    assert names(onnx_file.load(path)) == expected


def test_values_of_branches_get_names_of_their_own_and_mean_the_same(tmp_path: Path) -> None:
    source = (
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x, bool c) => (float[2] y) {'
        "h = Relu(x) y = If (c) <then_branch = t () => (float[2] o) <float[2] w = {1, 2}> { o = Add(h, w) },"
        "            else_branch = f () => (float[2] o) <float[2] w = {3, 4}> { h2 = Mul(h, w) o = Neg(h2) }> }"
    )
    path = write(tmp_path / "m.onnx", source)
    model = onnx_file.load(path)
    defined = [v.name for g in edit.graphs(model) for v in (*g.inputs, *getattr(g, "initializers", {}).values())]
    defined += [v.name for n in edit.nodes(model) for v in n.outputs]
    assert len(defined) == len(set(defined))
    assert {"x", "c", "h", "y"} <= set(defined)
    onnx_file.save(model, tmp_path / "saved.onnx")
    onnx.checker.check_model(tmp_path / "saved.onnx")
    x = np.array([1, 2], np.float32)
    for c, want in ((True, [2, 4]), (False, [-3, -8])):
        assert kit.run(model, {"x": x, "c": np.array(c)})["y"].tolist() == want


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    source = '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y)'
    model = onnx_file.load(write(tmp_path / "m.onnx", source + "{ y = Neg(a) a = Relu(x) }"))
    assert kit.ops(model) == ["Relu", "Neg"]


def test_functions_survive(tmp_path: Path) -> None:
    source = (
        '<ir_version: 8, opset_import: ["" : 18, "my" : 1]> g (float[2] x) => (float[2] y) { y = my.double(x) }'
        '<domain: "my", opset_import: ["" : 18]> double (a) => (b)'
        "{ two = Constant <value_float = 2.0> () b = Mul(a, two) }"
    )
    path = write(tmp_path / "m.onnx", source)
    model = onnx_file.load(path)
    assert list(model.functions) == [("my", "double", "")]
    onnx_file.save(model, path)
    assert kit.run(onnx_file.load(path), {"x": np.array([1, 2], np.float32)})["y"].tolist() == [2, 4]


def test_the_opset_stays(tmp_path: Path) -> None:
    for version in (7, 13, onnx.defs.onnx_opset_version()):
        source = f'<ir_version: 4, opset_import: ["" : {version}]> g (float[2] x) => (float[2] y) {{ y = Relu(x) }}'
        assert edit.opset(onnx_file.load(write(tmp_path / "m.onnx", source))) == version


def test_old_spellings_are_understood(tmp_path: Path) -> None:
    """The standard domain by its long name; -1 for a size that is not known."""
    source = '<ir_version: 4, opset_import: ["ai.onnx" : 9]> g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }'
    proto = onnx.parser.parse_model(source)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.node[0].domain = "ai.onnx"
    model = onnx_file.load(write(tmp_path / "m.onnx", proto))
    assert edit.opset(model) == 9
    shape = model.graph.inputs[0].shape
    assert shape is not None and not shape.is_static(0) and shape[1] == 3


def test_documentation_that_is_not_text_is_dropped(tmp_path: Path) -> None:
    proto = linear(4)
    proto.graph.node[0].doc_string = "DOCSTRING"
    data = proto.SerializeToString().replace(b"DOCSTRING", b"\xff" * 9)
    (tmp_path / "m.onnx").write_bytes(data)
    onnx_file.save(onnx_file.load(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").graph.node[0].doc_string == ""


def test_a_domain_can_be_allowed(tmp_path: Path) -> None:
    source = '<ir_version: 8, opset_import: ["" : 13, "acme" : 1]> g (float[2] x) => (y) { y = acme.Magic(x) }'
    model = onnx_file.load(write(tmp_path / "m.onnx", source), domains=["acme"])
    assert kit.ops(model) == ["Magic"]


def test_masks_with_infinities_are_fine_and_nonfinite_weights_on_request(tmp_path: Path) -> None:
    source = '<ir_version: 8, opset_import: ["" : 13]> g (float[1,2] x) => (y) { a = Add(x, m) y = MatMul(a, w) }'
    proto = onnx.parser.parse_model(source)
    mask, weight = np.array([[0, -np.inf]], np.float32), np.array([[np.nan], [np.inf]], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(mask, "m"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones_like(weight), "w"))
    assert onnx_file.load(write(tmp_path / "m.onnx", proto))
    proto.graph.initializer[1].raw_data = weight.tobytes()
    assert onnx_file.load(write(tmp_path / "m.onnx", proto), allow_nonfinite=True)


def test_float8_and_bfloat16_weights_are_looked_at(tmp_path: Path) -> None:
    from graphpress.frontends import finite

    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        array = np.array([0, 1, np.nan], dtype)
        assert finite.count(ir.tensor(array)) == (1, 0)
