"""What is not a model, or a damaged or dishonest one, gets one error that names the file, the place and the way out."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.errors import BadRequest, InvalidModel
from graphpress.frontends import onnx_file
from tests import kit
from tests.frontends.test_onnx_file import linear, write

HEAD = '<ir_version: 8, opset_import: ["" : 13]> '


def refused(path: Path, *words: str) -> InvalidModel:
    """Loading raises InvalidModel; the message names the file and has all the words, and a way out."""
    with pytest.raises(InvalidModel) as caught:
        onnx_file.load(path)
    error = caught.value
    assert error.where.startswith(str(path)) and error.fix.endswith((".", "?"))
    for word in words:
        assert word in str(error), str(error)
    return error


# -- not a model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"hello, I am no model\n" * 9, ["text"]),
        (b'{"model": 1}', ["text"]),
        (pickle.dumps({"a": 1}), ["pickle", "never loaded", "graphpress.trace"]),
        (b"PK\x03\x04" + bytes(200), ["zip", "never loaded", "graphpress.trace"]),
        (bytes(257) + b"ustar" + bytes(100), ["tar"]),
        (b"\x20\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}', ["safetensors"]),
        (b"\x1c\0\0\0TFL3" + bytes(50), ["TensorFlow Lite"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["git lfs pull"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
        (bytes(64), ["damaged"]),
        (b"\xff" * 64, ["damaged"]),
        (onnx.ModelProto(ir_version=8).SerializeToString(), ["no graph"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_not_a_model(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", *words)


def test_a_torch_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "never loaded")


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "m", "no such file"), (tmp_path / "pipe", "regular")):
        with pytest.raises(BadRequest, match=f"{path}: .*{reason}"):
            onnx_file.load(path)


# -- the graph


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("<ir_version: 3, opset_import: ['' : 6]> g (float[2] x) => (y) { y = Relu(x) }", ["opset 6", "older than 7"]),
        ("<ir_version: 8, opset_import: ['' : 99]> g (float[2] x) => (y) { y = Relu(x) }", ["99", "newer onnx"]),
        ("<ir_version: 99, opset_import: ['' : 13]> g (float[2] x) => (y) { y = Relu(x) }", ["99", "newer onnx"]),
        ("<ir_version: 8, opset_import: ['ai.onnx.ml' : 3]> g (float[2] x) => (y) { y = Relu(x) }", ["no version"]),
        ("g (float[2] x) => (y) { [n] y = acme.Foo(x) }", ["node 'n'", "'acme'", "function in the model"]),
        ("g (float[2] x) => (y) { [n] y = Conw(x) }", ["node 'n'", "no operator 'Conw'", "'Conv'"]),
        ("g (float[2] x) => (y) { [n] y = com.microsoft.Gelu(x) }", ["node 'n'", "com.microsoft", "import"]),
        ("g (float[2] x) => (y) { [n] y = Add(x, z) }", ["node 'n'", "input 1", "'z'"]),
        ("g (float[2] x) => (z) { y = Relu(x) }", ["output 'z'"]),
        ("g (float[2] x) => () { y = Relu(x) }", ["no outputs"]),
        ("g (float[2] x) => (y) { y = Relu(x) [n] y = Neg(x) }", ["node 'n'", "'y' a second time"]),
        ("g (float[2] x) => (y) { [n] x = Relu(y) y = Neg(x) }", ["node 'n'", "'x' a second time"]),
        ("g (float[2] x, float[2] x) => (y) { y = Relu(x) }", ["'x' is there twice"]),
        ("g (float[2] x) => (y) { [a] y = Add(x, q) [b] p = Neg(y) [c] q = Relu(p) }", ["'a' <- 'c' <- 'b'"]),
        (
            "g (float[2] x, bool c) => (y) { [n] y = If (c) <then_branch = t () => (a) { [in] a = Add(x, nowhere) },"
            "else_branch = e () => (b) { b = Neg(x) }> }",
            ["node 'in'", "'nowhere'"],
        ),
        ("g (float[1000000,1000000,9] x) => (y) { y = Relu(x) }", ["'x'", "terabytes"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)  # fmt: skip
def test_broken_graphs(tmp_path: Path, source: str, words: list[str]) -> None:
    text = source.replace("'", '"') if source.startswith("<") else HEAD + source
    refused(write(tmp_path / "m.onnx", text), *words)


def test_the_work_of_refusing_grows_with_the_graph_and_no_faster(tmp_path: Path) -> None:
    """A chain of nodes, all of one name, that ends in a circle."""
    found = []
    for count in (1_000, 4_000):
        proto = onnx.parser.parse_model(HEAD + "g (float[2] x) => (y) { a = Add(y, x) y = Relu(a) }")
        for i in range(count):
            proto.graph.node.add(name="n", op_type="Relu", input=[f"v{i}" if i else "y"], output=[f"v{i + 1}"])
        path = write(tmp_path / "m.onnx", proto)
        found.append(kit.calls(partial(refused, path, "circle", "'Add_0' <- 'Relu_1'")))
    assert found[1] < 4.4 * found[0]


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    source = (
        '<ir_version: 8, opset_import: ["" : 18, "my" : 1]> g (float[2] x) => (y) { y = my.a(x) }'
        '<domain: "my", opset_import: ["" : 18, "my" : 1]> a (x) => (y) { y = my.b(x) }'
        '<domain: "my", opset_import: ["" : 18, "my" : 1]> b (x) => (y) { y = my.a(x) }'
    )
    refused(write(tmp_path / "m.onnx", source), "my::a, my::b", "circle")


def test_what_the_graph_cannot_hold(tmp_path: Path) -> None:
    proto = linear(4)
    proto.graph.sparse_initializer.add()
    refused(write(tmp_path / "m.onnx", proto), "sparse")
    proto = linear(4)
    proto.graph.output[0].type.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    refused(write(tmp_path / "m.onnx", proto), "'y'", "maps")


# -- weights


def test_shapes_that_lie(tmp_path: Path) -> None:
    for n, raw in ((4, True), (600, True), (4, False)):
        for dims in ([n, 3], [n, 1], [-n, -2], [1 << 40, 1 << 40], [1 << 62, 4]):
            proto = linear(n)
            weight = proto.graph.initializer[0]
            if not raw:
                weight.float_data.extend(onnx.numpy_helper.to_array(weight).ravel())
                weight.ClearField("raw_data")
            weight.dims[:] = dims
            refused(write(tmp_path / "m.onnx", proto), "initializer 'w'", str(dims))


def test_a_shape_without_data_allocates_nothing(tmp_path: Path) -> None:
    proto = linear(4)
    proto.graph.initializer[0].CopyFrom(onnx.TensorProto(name="w", data_type=1, dims=[1 << 20, 1 << 20]))
    refused(write(tmp_path / "m.onnx", proto), "initializer 'w'", "needs 1099511627776")


@pytest.mark.parametrize("kind", [0, 77])
def test_unknown_element_types(tmp_path: Path, kind: int) -> None:
    proto = linear(4)
    proto.graph.initializer[0].data_type = kind
    refused(write(tmp_path / "m.onnx", proto), "initializer 'w'", f"element type {kind}")


@pytest.mark.parametrize("n", [4, 600, 500_000])
@pytest.mark.parametrize("bad", [[np.nan], [np.inf, -np.inf], [np.nan, np.inf, np.inf]])
def test_nonfinite_weights(tmp_path: Path, n: int, bad: list[float]) -> None:
    proto = linear(n)
    weight = proto.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight).copy()
    array.ravel()[-len(bad) :] = bad
    weight.raw_data = array.tobytes()
    nans = sum(np.isnan(bad))
    words = f"{len(bad)} of {2 * n} values", f"({nans} NaN, {len(bad) - nans} infinite)"
    refused(write(tmp_path / "m.onnx", proto), "weight 'w' of node 'MatMul_0'", "allow_nonfinite", *words)


def test_nonfinite_weights_in_constants_and_branches(tmp_path: Path) -> None:
    source = HEAD + "g (float[1,2] x) => (y) { w = Constant <value = float[2,1] {1, 2}> () [n] y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(source)
    proto.graph.node[0].attribute[0].t.float_data[0] = np.nan
    refused(write(tmp_path / "m.onnx", proto), "weight 'w' of node 'n'")
    source = HEAD + "g (float[1,2] x) => (y) <float[2] b = {1, 2}> { y = Add(x, b) }"
    proto = onnx.parser.parse_model(source)
    proto.graph.initializer[0].float_data[0] = np.nan
    refused(write(tmp_path / "m.onnx", proto), "weight 'b'", "1 NaN")


# -- external data


def external(folder: Path, location: str = "w.bin", offset: str = "0", length: str = "4800", size: int = 4800) -> Path:
    proto = linear()
    weight = proto.graph.initializer[0]
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        weight.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(data[:size])
    return write(folder / "m.onnx", proto)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"location": "other.bin"}, ["other.bin", "no such file"]),
        ({"location": ""}, ["no location"]),
        ({"location": "a\0b"}, ["no location"]),
        ({"location": "."}, ["cannot be read"]),
        ({"size": 4799}, ["4799 bytes", "4800"]),
        ({"size": 0}, ["0 bytes", "4800"]),
        ({"offset": "1"}, ["4801"]),
        ({"offset": str(10**17)}, [str(10**17)]),
        ({"offset": "-8"}, ["offset", "-8"]),
        ({"offset": "1e3"}, ["offset", "1e3"]),
        ({"offset": "9" * 5000}, ["offset"]),
        ({"length": "4796"}, ["4796", "needs 4800"]),
        ({"length": "9600"}, ["9600", "needs 4800"]),
    ],
    ids=str,
)
def test_external_data_missing_or_short(tmp_path: Path, args: dict, words: list[str]) -> None:
    refused(external(tmp_path, **args), "initializer 'w'", *words)


def test_external_data_outside_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secret.bin"
    folder.mkdir()
    outside.write_bytes(bytes(4800))
    (folder / "link.bin").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "fine.bin").symlink_to(folder / "w.bin")
    for location in ("../secret.bin", str(outside), "link.bin", "linked/secret.bin", "x/../../secret.bin", "C:\\w.bin"):
        refused(external(folder, location), "initializer 'w'", "leaves the folder")
    refused(external(folder, str(folder / "w.bin")), "leaves the folder")  # an absolute path fits one machine only
    for location in ("w.bin", "fine.bin", "x/../w.bin"):
        (folder / "x").mkdir(exist_ok=True)
        assert onnx_file.load(external(folder, location))


def test_external_data_from_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(external(tmp_path, "pipe"), "not a regular file")


# -- damage


SMALL = onnx.parser.parse_model(
    HEAD + "g (float[N,3] x, bool c) => (float[N,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, 1}> {"
    "k = Constant <value = int64[1] {2}> () h = Gemm <alpha = 0.5, transB = 0> (x, w, b)"
    "y = If (c) <then_branch = t () => (p) { p = Relu(h) },"
    "            else_branch = f () => (q) { s = Cast <to = 1> (k) q = Mul(h, s) }> }"
)
SMALL.graph.node[1].doc_string = "a text"
SMALL.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((40, 10), np.float32), "big"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=500)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=4), cut=st.integers(0, 1 << 13))
def test_damaged_files_are_refused_or_still_models(scratch: Path, flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever bits flip, wherever the file ends: InvalidModel, or a model that can be saved."""
    data = bytearray(SMALL.SerializeToString())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    path = scratch / "m.onnx"
    path.write_bytes(data[:cut] if cut < len(data) else data)
    refusal = ""
    try:
        onnx_file.save(onnx_file.load(path), scratch / "saved.onnx")
        onnx_file.load(scratch / "saved.onnx")
    except InvalidModel as e:
        refusal = str(e)
    assert "\n" not in refusal and len(refusal) < 600


@pytest.mark.parametrize("saved", [False, True])
def test_truncated_files_are_refused(tmp_path: Path, saved: bool) -> None:
    path = write(tmp_path / "whole.onnx", SMALL)
    if saved:
        onnx_file.save(onnx_file.load(path), path)
    data = path.read_bytes()
    for end in (*range(0, len(data), 7), *range(len(data) - 40, len(data))):
        (tmp_path / "m.onnx").write_bytes(data[:end])
        with pytest.raises(InvalidModel):
            onnx_file.load(tmp_path / "m.onnx")
