"""Data as users have it: whatever can be iterated, arrays in files, and what is said of data that looks wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import graphpress as gp
from graphpress.errors import CalibrationError
from graphpress.observe import looks
from graphpress.observe.sources import elements
from tests import kit

ONE = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
TWO = "g (float[N,3] x, int64[N] k) => (float[N,3] y, int64[N] z) { y = Relu(x) z = Identity(k) }"
X = np.arange(30, dtype=np.float32).reshape(10, 3)
K = np.arange(10) * 7


def take(given: Any, source: str = ONE) -> gp.CalibrationData:
    model = kit.parse(source)
    data = gp.calibration_data(given, model)
    assert data is not None
    data.check(model)
    return data


def digest(**arrays: np.ndarray) -> str:
    return gp.CalibrationData.from_arrays(arrays).digest()


class Rows(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.from_numpy(X))


class Columns:
    """What a dataset of Hugging Face shows of itself."""

    column_names = ("text", "k", "label", "x")

    def __init__(self, rows: int = 10) -> None:
        self.column_names, self.rows = list(type(self).column_names), rows  # type: ignore[misc]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= self.rows:
            raise IndexError
        return {"text": "a", "k": int(K[i]), "label": i, "x": [float(v) for v in X[i]]}


class Reader:
    """As users of ONNX Runtime's quantizer write it: ``get_next`` gives a feed, and None at the end."""

    def __init__(self) -> None:
        self.left = list(X)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"x": self.left.pop(0)[None]} if self.left else None


class Dataset:
    """As NNCF's: a source and a function that makes inputs of an item."""

    def get_inference_data(self) -> Iterator[np.ndarray]:
        return iter(X)


FORMS: dict[str, Callable[[], Any]] = {
    "a reader of ONNX Runtime": Reader,
    "a dataset of NNCF": Dataset,
    "an array": lambda: X,
    "a tensor that wants gradients": lambda: torch.from_numpy(X).requires_grad_(),
    "a mapping of tensors": lambda: {"x": torch.from_numpy(X)},
    "a tuple of arrays": lambda: (X,),
    "a list of batches": lambda: [X[:4], X[4:]],
    "a list of samples": lambda: list(X),
    "nested lists of numbers": lambda: X.tolist(),
    "a generator of dicts": lambda: ({"x": X[i : i + 2]} for i in range(0, 10, 2)),
    "a generator of samples in dicts": lambda: ({"x": row} for row in X),
    "a loader": lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=3),
    "a loader without batches": lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=None),
    "a loader of a stream": lambda: DataLoader(Rows(), batch_size=4),
    "a dataset": lambda: TensorDataset(torch.from_numpy(X)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_input_gives_the_same_samples(form: str) -> None:
    assert take(FORMS[form]()).digest() == digest(x=X)


LABELLED: dict[str, Callable[[], Any]] = {
    "a tuple of arrays": lambda: (X, K),
    "a loader": lambda: DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(K)), batch_size=3),
    "samples": lambda: list(zip(X, K, strict=True)),
    "inputs by name, and labels": lambda: [({"x": X[:5]}, K[:5]), ({"x": X[5:]}, K[5:])],
    "a dict": lambda: {"x": X, "labels": K},
}


@pytest.mark.parametrize("form", LABELLED)
def test_whole_numbers_behind_the_inputs_are_labels(form: str) -> None:
    assert take(LABELLED[form]()).digest() == digest(x=X, labels=K)


def test_tuples_go_by_the_order_of_the_inputs() -> None:
    for pairs in ((X, K), [(X[:3], K[:3]), (X[3:], K[3:])], list(zip(X, K, strict=True))):
        assert take(pairs, TWO).digest() == digest(x=X, k=K)
    assert take([(X, K, K)], TWO).digest() == digest(x=X, k=K, labels=K)


@settings(max_examples=15)
@given(st.lists(st.one_of(st.none(), st.integers(1, 80)), min_size=1, max_size=6))
def test_samples_keep_their_order_however_they_come(pieces: list[int | None]) -> None:
    """None stands for one sample without the axis of samples."""
    whole = np.arange(sum(n or 1 for n in pieces) * 3, dtype=np.float32).reshape(-1, 3)
    cuts = np.split(whole, np.cumsum([n or 1 for n in pieces])[:-1])
    given = [c[0] if n is None else c for n, c in zip(pieces, cuts, strict=True)]
    assert take(iter(given)).digest() == digest(x=whole)


def test_whole_feeds_of_a_model_with_states_are_samples() -> None:
    source = """g (float[N,3] x, float[2,N,4] s, int64 rate) => (float[N,3] y, float[2,N,4] t, int64 r)
        { y = Relu(x) t = Relu(s) r = Identity(rate) }"""
    feeds = [{"x": X[i : i + 1], "s": np.full((2, 1, 4), i, np.float32), "rate": np.asarray(8)} for i in range(5)]
    data = take(feeds, source)
    bound = data.bind(kit.parse(source))
    got = list(bound.batches(4))
    assert len(data) == len(got) == 5
    for feed, want in zip(got, feeds, strict=True):
        for name, array in want.items():
            np.testing.assert_array_equal(feed[name], array)


def test_of_a_dataset_with_columns_inputs_and_labels_are_taken() -> None:
    source = "g (float[N,3] x, int64[N] k) => (float[N,3] y, int64[N] z) { y = Relu(x) z = Identity(k) }"
    assert take(Columns(), source).digest() == digest(x=X, k=K, labels=np.arange(10))
    with pytest.raises(CalibrationError, match=r"input 'q'.*no such column. It has text, k, label, x: rename"):
        take(Columns(), "g (float[N,3] q) => (float[N,3] y) { y = Relu(q) }")
    with pytest.raises(CalibrationError, match=r"is 2 datasets \(train, test\). Give one: data\['train'\]"):
        take({"train": Columns(), "test": Columns()})


def test_what_never_ends_is_bounded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    data = take({"x": X} for _ in itertools.count())
    assert elements.MOST_SAMPLES <= len(data) < elements.MOST_SAMPLES + 10
    assert data.notes == (f"the first {len(data)} samples were taken; there are more",)
    assert take([X] * 50).notes == ()  # it says how long it is
    monkeypatch.setattr(elements, "MOST_BYTES", 400)
    data = take([X] * 500)
    assert len(data) == 40
    assert "there are more" in data.notes[0]


def test_half_precision_of_torch_is_exact() -> None:
    source = "g (bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity(x) }"
    given = torch.from_numpy(X).to(torch.bfloat16) / 3
    (feed,) = take(given, source).bind(kit.parse(source)).batches(16)
    assert feed["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(feed["x"].astype(np.float32), given.float().numpy())


BAD: list[tuple[Any, str]] = [
    (lambda: None, "a function is no calibration data. Call it"),
    (7, "a int is no calibration data. Give arrays"),
    (iter(()), "gives nothing. A generator gives its samples only once"),
    ([object()], "element 0: a object is no sample. Give dicts"),
    ([(X, X, X)], r"element 0: it has 3 arrays, the model takes 1 \(x\). Give a dict"),
    ([(X, X)], "one array more than the model has inputs, and that is float32: labels are whole numbers"),
    ([{"x": [[1.0, 2.0, 3.0], [1.0]]}], "element 0, array 'x': holds rows of unequal length. Pad"),
    ([X, X[:, :2]], "samples 10 to 19, input 'x': has shape"),
    ({"x": X, "y": K}, "input 'y': the model has no such input. It looks like labels: call it 'labels'"),
    ({"x": X, "target": X}, "It looks like labels"),
    ({"x": X, "xx": X}, "no such input. Did you mean 'x'"),
    (X.astype(np.float64), "is float64, the model takes float32"),
    ("nowhere.npz", "nowhere.npz: there is no such file or folder"),
]


@pytest.mark.parametrize(("given_data", "message"), BAD)
def test_what_cannot_be_taken_is_refused_in_one_sentence(given_data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        take(given_data)


def test_arrays_in_files(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.asfortranarray(X))
    save_file({"x": X, "labels": K}, tmp_path / "a.safetensors")
    with (tmp_path / "plain").open("wb") as f:
        np.savez(f, x=X)
    assert take(tmp_path / "data.npy").digest() == take(tmp_path / "plain").digest() == digest(x=X)
    assert take(str(tmp_path / "a.safetensors")).digest() == digest(x=X, labels=K)
    save_tensors({"x": torch.from_numpy(X).to(torch.bfloat16)}, tmp_path / "b.safetensors")
    source = "g (bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity(x) }"
    (feed,) = take(tmp_path / "b.safetensors", source).bind(kit.parse(source)).batches(16)
    np.testing.assert_array_equal(feed["x"], X.astype(ml_dtypes.bfloat16))


def test_folders_of_arrays(tmp_path: Path) -> None:
    folders = {n: tmp_path / n for n in ("pieces", "named", "own", "tensors", "both", "odd")}
    for folder in folders.values():
        folder.mkdir()
    for i, rows in enumerate(np.split(X, 2)):
        np.save(folders["pieces"] / f"{i}.npy", rows)
        save_file({"x": rows}, folders["tensors"] / f"{i}.safetensors")
    for name, array in {"x": X, "k": K, "labels": K}.items():
        np.save(folders["named"] / f"{name}.npy", array)
    np.save(folders["own"] / "images.npy", X)
    np.save(folders["own"] / "labels.npy", K)
    assert take(folders["pieces"]).digest() == take(folders["tensors"]).digest() == digest(x=X)
    assert take(folders["named"], TWO).digest() == digest(x=X, k=K, labels=K)
    assert take(folders["own"]).digest() == digest(x=X, labels=K)
    with pytest.raises(
        CalibrationError, match=r"images.npy is none of the model's inputs. Name each file after its input"
    ):
        take(folders["own"], TWO)
    np.save(folders["both"] / "x.npy", X)
    np.savez(folders["both"] / "y.npz", x=X)
    with pytest.raises(CalibrationError, match=r"holds .npy and .npz files. Keep one kind"):
        take(folders["both"])
    (folders["odd"] / "a.csv").write_text("1,2")
    with pytest.raises(CalibrationError, match=r"holds no .npz, .safetensors or .npy file, and no .*numpy.savez"):
        take(folders["odd"])


def test_damaged_tensor_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": X}, tmp_path / "x.safetensors")
    good = (tmp_path / "x.safetensors").read_bytes()
    lies = {
        "empty": (b"", "not a readable .safetensors file"),
        "cut": (good[:-8], r"array 'x': claims shape \(10, 3\) of float32 \(120 bytes\) and holds 112"),
        "long": ((1 << 60).to_bytes(8, "little") + good[8:], "its header claims"),
        "text": (good.replace(b'"F32"', b'"F99"'), "is of type F99. Known: BOOL"),
        "list": ((2).to_bytes(8, "little") + b"[]", "not a readable"),
    }
    for name, (content, message) in lies.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(CalibrationError, match=rf"{name}\.safetensors.*{message}"):
            take(tmp_path / f"{name}.safetensors")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(CalibrationError, match=r"bad\.npy: not a readable \.npy file.*numpy\.save\("):
        take(tmp_path / "bad.npy")


CONV = """g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w = {WEIGHTS}> { y = Conv(x, w) }"""
IMAGE = (3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "source", "message"),
    [
        ((5, 8, 8, 3), "float[N,3,8,8]", r"last \(NHWC\), the model takes them first: array.transpose\(0, 3, 1, 2\)"),
        ((5, 3, 8, 8), "float[N,8,8,3]", r"first \(NCHW\), the model takes them last: array.transpose\(0, 2, 3, 1\)"),
        ((3, 8, 8), "float[N,3,8,8]", r"one sample without the axis of samples: array\[None\]"),
        ((5, 49, 10), "float[N,10,49]", r"last, the model takes them first: array.transpose\(0, 2, 1\)"),
        ((5, 4, 8, 8), "float[N,3,8,8]", "Put the samples first"),
    ],
)  # fmt: skip
def test_axes_in_another_order_are_named(shape: tuple[int, ...], source: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        take({"x": np.zeros(shape, np.float32)}, f"g ({source} x) => ({source} y) {{ y = Relu(x) }}")


def conv(gain: float) -> ir.Model:
    weights = np.random.default_rng(0).normal(size=4 * 27) * gain
    return kit.parse(CONV.replace("WEIGHTS", ",".join(f"{w:.6f}" for w in weights)))


def test_raw_pixels_are_noticed_by_what_the_first_layer_makes_of_them() -> None:
    raw = np.random.default_rng(1).integers(0, 256, (4, *IMAGE)).astype(np.float32)
    assert "whole numbers from 0 to 255" in looks.raw_pixels(conv(0.2), {"x": raw})
    assert looks.raw_pixels(conv(0.002), {"x": raw}) == ""  # trained on raw ones
    assert looks.raw_pixels(conv(0.2), {"x": raw / 255}) == ""
    assert looks.raw_pixels(conv(0.2), {"x": raw - 128}) == ""
    dense = kit.parse("g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 1}> { y = MatMul(x, w) }")
    pairs = np.array([[30, 40], [0, 200]], np.float32)
    assert f"answers with {np.sqrt((70**2 + 200**2) / 2):.0f} " in looks.raw_pixels(dense, {"x": pairs})
    scaled = kit.parse("g (float[N,2] x) => (float[N,2] y) <float c = {255}> { y = Div(x, c) }")
    assert looks.raw_pixels(scaled, {"x": pairs}) == ""


def test_raw_pixels_are_in_the_report() -> None:
    raw = np.random.default_rng(1).integers(0, 256, (8, *IMAGE)).astype(np.uint8)
    _, report = gp.compile(conv(0.2), "w8a8", raw, gate=False, prove=False)
    (warning,) = [w for w in report.warnings if w.where == "data"]
    assert "raw pixels" in warning.why


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "raw"),
    [("cifar10/resnet20", True), ("cifar10/mlperf_tiny_resnet8", False), ("imagenet/mobilenet_v1_0.5_160", True)],
)
def test_raw_pixels_of_real_models(zoo: Path, name: str, raw: bool) -> None:
    model = gp.load(zoo / f"{name}.onnx")
    value = model.graph.inputs[0]
    assert value.shape is not None
    last = value.shape[3] == 3
    pixels = np.load(zoo / "cifar10" / "test.npz")["x"][:8].astype(np.float32)
    pixels = pixels if last else pixels.transpose(0, 3, 1, 2)
    assert bool(looks.raw_pixels(model, {value.name or "": pixels})) == raw
