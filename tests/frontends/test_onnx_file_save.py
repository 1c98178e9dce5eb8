"""Saving: the same model comes back, whole or not at all, the same bytes each time, nobody's paths in them."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest
from graphpress.frontends import onnx_file, save, stored
from graphpress.graph import edit
from graphpress.keys import SCOPE
from tests import kit
from tests.frontends.test_onnx_file import TYPES, linear, write

X = np.arange(600, dtype=np.float32)[None]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    """The linear model, its weight lying in a file of another folder."""
    (tmp_path / "source").mkdir()
    return onnx_file.load(write(tmp_path / "source" / "m.onnx", linear()))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


# -- what is written


@pytest.mark.parametrize("external", [False, True])
def test_other_readers_read_the_same(model: ir.Model, out: Path, external: bool) -> None:
    onnx_file.save(model, out, external)
    onnx.checker.check_model(out, full_check=True)
    assert set(content(out.parent)) == ({"m.onnx", "m.onnx.data"} if external else {"m.onnx"})
    original, written = linear(), onnx.load(out)
    for a, b in zip(original.graph.initializer, written.graph.initializer, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))
    before = kit.run(ir.from_proto(original), {"x": X})
    np.testing.assert_array_equal(kit.run(onnx_file.load(out), {"x": X})["y"], before["y"])


@pytest.mark.parametrize("external", [False, True])
def test_every_element_type(out: Path, external: bool) -> None:
    arrays = {t.name: np.ones(5001, t.numpy()) for t in TYPES}
    made = kit.parse("g () => () {}")
    for name, array in arrays.items():
        edit.add_const(made.graph, array, name)
    made.graph.outputs.append(made.graph.initializers["FLOAT"])
    onnx_file.save(made, out, external)
    for _ in range(2):
        loaded = onnx_file.load(out)
        for name, array in arrays.items():
            tensor = loaded.graph.initializers[name].const_value
            assert isinstance(tensor, stored.StoredTensor) and tensor.dtype.name == name
            np.testing.assert_array_equal(tensor.numpy().view(np.uint8), array.view(np.uint8))
        onnx_file.save(loaded, out, external)


def test_weights_of_branches_can_be_external(out: Path, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[600] x, bool c) => (y) {'
        "y = If (c) <then_branch = t () => (p) { p = Add(x, w) }, else_branch = f () => (q) { q = Neg(x) }> }"
    )
    weight = onnx.numpy_helper.from_array(np.arange(600, dtype=np.float32), "w")
    proto.graph.node[0].attribute[0].g.initializer.append(weight)
    onnx_file.save(onnx_file.load(write(tmp_path / "m.onnx", proto)), out, external=True)
    assert Path(f"{out}.data").stat().st_size == 2400
    got = kit.run(onnx_file.load(out), {"x": X[0], "c": np.array(True)})["y"]
    np.testing.assert_array_equal(got, 2 * X[0])


def test_tensors_that_onnx_ir_left_outside(model: ir.Model, out: Path, tmp_path: Path) -> None:
    """A model that onnx_ir loaded with its external tensors, small ones too, is saved into one file."""
    onnx.save(linear(), tmp_path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    onnx_file.save(ir.load(tmp_path / "e.onnx"), out)
    assert set(content(out.parent)) == {"m.onnx"}
    onnx_file.save(model, tmp_path / "same.onnx")
    assert kit.run(onnx_file.load(out), {"x": X})["y"].tolist() == kit.run(model, {"x": X})["y"].tolist()


def test_the_same_bytes_each_time(model: ir.Model, out: Path, tmp_path: Path) -> None:
    for external in (False, True):
        onnx_file.save(model, out, external)
        first = content(out.parent)
        onnx_file.save(onnx_file.load(tmp_path / "source" / "m.onnx"), out, external)
        assert content(out.parent) == first
        onnx_file.save(onnx_file.load(out), out, external)
        assert content(out.parent) == first


def test_big_tensors_start_on_a_page(out: Path) -> None:
    made = kit.parse("g () => (y) { y = Identity(a) }")
    for name, n in (("a", 300), ("b", 1 << 18), ("c", 300)):
        edit.add_const(made.graph, np.full(n, ord(name), np.float32), name)
    made.graph.node(0).replace_input_with(0, made.graph.initializers["a"])
    onnx_file.save(made, out, external=True)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in _bare(out).graph.initializer}
    assert [int(entries[n]["offset"]) for n in "abc"] == [0, 4096, 4096 + (1 << 20)]


def _bare(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def test_external_when_the_weights_are_big(model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "EXTERNAL_FROM", 4000)
    onnx_file.save(model, out)
    assert set(content(out.parent)) == {"m.onnx", "m.onnx.data"}
    monkeypatch.setattr(save, "_FILE_LIMIT", 4000)
    with pytest.raises(BadRequest, match="external=True"):
        onnx_file.save(model, out, external=False)


@pytest.mark.parametrize(
    ("opset", "dtype", "functions", "want"),
    [
        (7, "FLOAT", 0, 4),
        (13, "FLOAT", 0, 7),
        (18, "FLOAT", 0, 8),
        (21, "INT4", 0, 10),
        (25, "FLOAT", 0, 13),
        (13, "INT4", 0, 10),
        (13, "INT2", 0, 13),
        (18, "FLOAT", 1, 10),
    ],
)
def test_the_lowest_ir_version(out: Path, opset: int, dtype: str, functions: int, want: int) -> None:
    made = kit.parse(f'<ir_version: 13, opset_import: ["" : {opset}]> g (float[2] x) => (y) {{ y = Relu(x) }}')
    edit.add_const(made.graph, np.ones(2, ir.DataType[dtype].numpy()), "w")
    if functions:
        empty = ir.Graph([], [], nodes=[], opset_imports={"": opset})
        made.functions[("my", "f", "")] = ir.Function("my", "f", graph=empty, attributes=[])
    onnx_file.save(made, out)
    assert _bare(out).ir_version == want
    assert made.ir_version == 13


def test_nobodys_paths_are_written(model: ir.Model, out: Path) -> None:
    traces = [
        'File "/home/ann/net.py", line 3, in forward', "C:\\Users\\ann\\net.py(3)", "see /Users/ann/model",
        "src/net.py:7", "~/code/net", "/root/x",
    ]  # fmt: skip
    kept = {"namespace": "/layer1/conv1/Conv", "n": "see https://onnx.ai/a/b", SCOPE: "/home/is/a/module.py"}
    places: list[Any] = [model, model.graph, model.graph.node(0), model.graph.inputs[0], model.graph.node(0).outputs[0]]
    for place in places:
        place.metadata_props.update({f"k{i}": t for i, t in enumerate(traces)} | kept)
        place.metadata_props["pkg.torch.onnx.stack_trace"] = "anything"
        place.doc_string = traces[0]
    model.graph.node(1).doc_string = "adds the bias"
    onnx_file.save(model, out)
    loaded = onnx_file.load(out)
    places = [loaded, loaded.graph, loaded.graph.node(0), loaded.graph.inputs[0], loaded.graph.node(0).outputs[0]]
    for place in places:
        assert dict(place.metadata_props) == kept and not place.doc_string
    assert loaded.graph.node(1).doc_string == "adds the bias"
    assert places[0] is not model and model.doc_string == traces[0]  # the model itself keeps them


# -- the model and its files afterwards


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_overwriting_the_file_a_model_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, mapped: bool
) -> None:
    monkeypatch.setattr(stored, "SMALL", 0 if mapped else 1 << 20)
    path = tmp_path / "m.onnx"
    onnx_file.save(onnx_file.load(write(path, linear())), path, external)
    model = onnx_file.load(path)
    want = kit.run(model, {"x": X})["y"]
    weight = model.graph.initializers["w"]
    weight.name, model.graph.name = "weight_with_a_longer_name", "moved"
    edit.add_const(model.graph, np.ones(5000, np.float32), "more")
    for _ in range(3):
        onnx_file.save(model, path, external)
        for each in (model, onnx_file.load(path)):
            np.testing.assert_array_equal(kit.run(each, {"x": X})["y"], want)


def test_the_mode_of_an_old_file_stays(model: ir.Model, out: Path) -> None:
    onnx_file.save(model, out)
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()
    out.chmod(0o640)
    onnx_file.save(model, out)
    assert out.stat().st_mode & 0o777 == 0o640


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- failures


def _fails_after(n: int, error: BaseException) -> Callable[..., None]:
    calls = iter(range(n))

    def copy(*args: Any) -> None:
        if next(calls, None) is None:
            raise error

    return copy


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()], ids=type)
def test_a_failed_save_leaves_everything_as_it_was(
    model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch, external: bool, old: bool, error: BaseException
) -> None:
    if old:
        onnx_file.save(model, out, external)
    before = content(out.parent)
    model.graph.name = "other"
    monkeypatch.setattr(save.wire, "copy", _fails_after(0, error))
    with pytest.raises(BadRequest if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        onnx_file.save(model, out, external)
    assert content(out.parent) == before
    if isinstance(error, OSError):
        assert "no space left" in str(caught.value) and str(out) in str(caught.value)


@pytest.mark.parametrize("old", [False, True])
def test_a_rename_that_fails_brings_the_other_file_back(
    model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        onnx_file.save(model, out, external=True)
    before = content(out.parent)
    edit.add_const(model.graph, np.ones(5000, np.float32), "more")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise OSError(errno.EACCES, "no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BadRequest, match="cannot be written"):
        onnx_file.save(model, out, external=True)
    assert content(out.parent) == before


def test_a_place_that_cannot_be_written(model: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "m.onnx", tmp_path / "source", tmp_path / "file" / "m.onnx"):
        with pytest.raises(BadRequest, match=f"{path}: cannot be written"):
            onnx_file.save(model, path)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "source"}


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """The system refuses to write more than so many bytes, as a full disk would."""
    write(tmp_path / "m.onnx", linear(100_000))
    (tmp_path / "out").mkdir()
    code = "import sys; from graphpress.frontends.onnx_file import load, save; save(load(sys.argv[1]), sys.argv[2])"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))

    command = [sys.executable, "-B", "-c", code, str(tmp_path / "m.onnx"), str(tmp_path / "out" / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert "BadRequest" in done.stderr and "no space left" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
