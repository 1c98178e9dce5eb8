"""Calibration data: what it accepts, how it is cut into batches, and what it refuses."""

from __future__ import annotations

import gc
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest, CalibrationError
from graphpress.observe import npz
from graphpress.observe.binding import lossless
from graphpress.observe.data import CalibrationData
from tests import kit


def model() -> ir.Model:
    return kit.parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


def x(n: int, width: int = 3) -> np.ndarray:
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def joined(data: CalibrationData, name: str = "x", size: int = 4) -> np.ndarray:
    return np.concatenate([b[name] for b in data.batches(size)])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 9))
def test_batches_are_full_whatever_the_files_hold(parts: list[int], size: int) -> None:
    whole = x(sum(parts))
    pieces = np.split(whole, np.cumsum(parts)[:-1])
    data = CalibrationData.from_batches({"x": p} for p in pieces)
    sizes = [len(b["x"]) for b in data.batches(size)]
    assert len(data) == len(whole) and set(sizes[:-1]) <= {size} and sum(sizes) == len(whole)
    np.testing.assert_array_equal(joined(data, size=size), whole)
    assert data.digest() == CalibrationData.from_arrays({"x": whole}).digest()


def test_a_folder_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        np.savez(tmp_path / f"{i}.npz", x=x(2) + 10 * i, labels=np.array([i, i]))
    data = CalibrationData.load(tmp_path)
    opened: list[str] = []
    real = npz.read
    monkeypatch.setattr(npz, "read", lambda p: opened.append(p.name) or real(p))
    data = CalibrationData.load(tmp_path)
    first = next(data.batches(2))
    assert opened == ["0.npz"] and list(first) == ["x"]
    assert data.labels is not None and data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_samples_of_unequal_shape_do_not_share_a_batch(tmp_path: Path) -> None:
    for i, width in enumerate((3, 3, 5)):
        np.savez(tmp_path / f"{i}.npz", x=x(3, width))
    data = CalibrationData.load(tmp_path).bind(kit.parse("g (float[N,M] x) => (float[N,M] y) { y = Relu(x) }"))
    assert [b["x"].shape for b in data.batches(4)] == [(4, 3), (2, 3), (3, 5)]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_files_are_read_exactly(tmp_path: Path, write: object) -> None:
    arrays = {
        "c": x(4), "f": np.asfortranarray(x(4)), "big": x(4).astype(">f4"), "none": np.zeros((4, 0), np.float32),
        "half": x(4).astype(np.float16), "scalar": np.asarray(7), "text": np.array(["a", "bc"] * 2),
    }  # fmt: skip
    write(tmp_path / "a.npz", **arrays)  # type: ignore[operator]
    read = npz.read(tmp_path / "a.npz")
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and npz.headers(tmp_path / "a.npz")[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def test_take_and_split_are_seeded_disjoint_and_ordered() -> None:
    data = CalibrationData.from_arrays({"x": x(50)}, labels=np.arange(50))
    rest, held = data.split(10, seed=3)
    a, b = rest.labels, held.labels
    assert a is not None and b is not None
    assert len(a) == 40 and len(b) == 10 and sorted([*a, *b]) == list(range(50))
    assert (np.diff(a) > 0).all() and (np.diff(b) > 0).all()
    np.testing.assert_array_equal(joined(held)[:, 0], b * 3)
    again = data.split(10, seed=3)[1].labels
    assert again is not None and (again == b).all()
    assert data.take(5, seed=1).digest() == data.take(5, seed=1).digest() != data.take(5, seed=2).digest()
    assert len(data.take(99)) == 50 and len(held.take(4)) == 4
    with pytest.raises(BadRequest, match="50 of 50"):
        data.split(50)


def test_the_digest_sees_names_types_shapes_and_elements() -> None:
    base = x(4)
    other = base.copy()
    other[3, 2] += 1
    variants = [{"x": base}, {"y": base}, {"x": base.astype(np.float64)}, {"x": base.reshape(4, 3, 1)},
                {"x": base[:3]}, {"x": other}, {"x": base, "labels": np.arange(4)}]  # fmt: skip
    assert len({CalibrationData.from_arrays(v).digest() for v in variants}) == len(variants)
    assert CalibrationData.from_arrays({"x": base}).digest() == CalibrationData.from_arrays({"x": base[:]}).digest()
    assert (
        CalibrationData.from_arrays({"x": base.astype(">f4").astype("<f4")}).digest()
        == CalibrationData.from_arrays({"x": base}).digest()
    )


def test_states_scalars_shared_and_unused_inputs_are_fed() -> None:
    source = """g (float[N,3] x, float[2,N,4] state, int64 rate, float[N,2] idle, float[1] shift)
        => (float[N,3] y, float[2,N,4] s, int64 r) { y = Add(x, shift) s = Relu(state) r = Identity(rate) }"""
    arrays = {"x": x(3), "state": np.ones((3, 2, 1, 4), np.float32), "rate": np.asarray(16000), "shift": x(3, 1)}
    data = CalibrationData.from_arrays(arrays)
    data.check(kit.parse(source))
    feeds = list(data.bind(kit.parse(source)).batches(8))
    assert [{k: v.shape for k, v in f.items()} for f in feeds] == 3 * [
        {"x": (1, 3), "state": (2, 1, 4), "rate": (), "idle": (1, 2), "shift": (1,)}
    ]
    assert kit.run(kit.parse(source), feeds[2])["y"].tolist() == [[8, 9, 10]]


def test_a_fixed_batch_is_obeyed_and_the_rest_left_out() -> None:
    data = CalibrationData.from_arrays({"x": x(7)})
    fixed = data.bind(kit.parse("g (float[3,3] x) => (float[3,3] y) { y = Relu(x) }"))
    assert [len(b["x"]) for b in fixed.batches(64)] == [3, 3]
    one = data.bind(kit.parse("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }"))
    assert [len(b["x"]) for b in one.batches(64)] == [1] * 7


def test_inputs_with_a_default_may_be_given_or_left_out() -> None:
    m = kit.parse("g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Mul(x, w) }")
    assert list(next(CalibrationData.from_arrays({"x": x(2)}).bind(m).batches(2))) == ["x"]
    feeds = next(CalibrationData.from_arrays({"x": x(2), "w": x(2)}).bind(m).batches(2))
    assert {k: v.shape for k, v in feeds.items()} == {"x": (1, 3), "w": (3,)}


def test_lossless_casts_are_made_and_no_others() -> None:
    data = CalibrationData.from_arrays({"x": np.array([[0, 128, 255]], np.uint8)}).bind(model())
    feed = next(data.batches(1))["x"]
    assert feed.dtype == np.float32 and feed.tolist() == [[0, 128, 255]]
    dtypes = [np.dtype(t) for t in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")]
    for a in dtypes:
        extremes = [0, 1] if a.kind == "b" else [np.iinfo(a).min, np.iinfo(a).max] if a.kind in "iu" else [0.1]
        for b in dtypes:
            with np.errstate(all="ignore"):
                kept = all(int(v) == int(e) if a.kind in "biu" else v == e and v.dtype.itemsize >= a.itemsize
                           for e in (np.array(extremes, a)) for v in [np.array(e).astype(b)]
                           if not (b.kind == "f" and np.isinf(v)))  # fmt: skip
            if lossless(a, b):
                assert kept, (a, b)
    assert not lossless(np.dtype("i8"), np.dtype("f8")) and not lossless(np.dtype("f8"), np.dtype("f4"))
    assert lossless(np.dtype("i4"), np.dtype("i8")) and not lossless(np.dtype("i4"), np.dtype("f4"))


BAD = [
    ({"x1": x(2)}, r"data, input 'x1': the model has no such input. Call it 'x', as the model does"),
    ({"x1": x(2), "x": x(2)}, r"data, input 'x1': the model has no such input. Did you mean 'x'"),
    ({}, r"input 'x': the data lacks this input. Add an array"),
    ({"x": x(2, 4)}, r"input 'x': has shape \(2, 4\), the model takes \(\?, 3\). Put the samples first"),
    ({"x": x(2)[:, :, None, None]}, r"has shape \(2, 3, 1, 1\)"),
    ({"x": x(2).astype(np.float64)}, r"input 'x': is float64, the model takes float32.*astype\('float32'\)"),
    ({"x": x(0)}, "there is no sample"),
    ({"x": np.where(x(5) == 7, np.float32("nan"), x(5))}, "input 'x', sample 2: holds nan. Leave out"),
    ({"x": np.where(x(300) == 800, np.float32("inf"), x(300))}, "input 'x', sample 266: holds inf"),
    ({"x": x(2), "labels": np.arange(3)}, r"disagree on the number of samples \(x 2, labels 3\)"),
    ({"x": np.array([[object()] * 3])}, "holds Python objects"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_bad_arrays_get_one_clear_error(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationData.from_arrays(arrays).check(model())


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x(2))
    np.savez(tmp_path / "b.npz", z=x(2))
    with pytest.raises(CalibrationError, match=r"b\.npz, array 'x': the arrays are not those of .*a\.npz"):
        CalibrationData.load(tmp_path)
    for wrong, message in ((x(2, 4), "has shape"), (x(2)[:, None], "its rank differs from that in the other files")):
        np.savez(tmp_path / "b.npz", x=wrong)
        with pytest.raises(CalibrationError, match=rf"b\.npz, input 'x': {message}"):
            CalibrationData.load(tmp_path).check(model())


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        CalibrationData.load(tmp_path / "none.npz")
    with pytest.raises(CalibrationError, match=r"holds no \.npz"):
        CalibrationData.load(tmp_path)
    np.savez(tmp_path / "good.npz", x=x(100))
    (tmp_path / "short.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:700])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("short.npz", "empty.npz"):
        with pytest.raises(CalibrationError, match=rf"{name}: not a readable \.npz"):
            CalibrationData.load(tmp_path / name)
    np.savez(tmp_path / "o.npz", x=np.array([{"a": 1}, None]))
    with pytest.raises(CalibrationError, match=r"'x': holds object"):
        CalibrationData.load(tmp_path / "o.npz")


@pytest.mark.parametrize("shape", [(1 << 40, 3), (3, -1), (2**62, 2**62)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_lies_allocates_nothing(tmp_path: Path, shape: tuple[int, int], compression: int) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w", compression) as z:
        z.writestr("x.npy", head.getvalue() + bytes(24))
    with pytest.raises(CalibrationError, match=r"lie\.npz"):
        CalibrationData.load(tmp_path / "lie.npz")


def test_damaged_compressed_data_is_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[400] ^= 0x10
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(CalibrationError, match="not a readable"):
        CalibrationData.load(tmp_path / "a.npz").check(model())


def test_compressed_data_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=x(1000))
    monkeypatch.setattr(npz, "_memory", lambda: 1000)
    with pytest.raises(CalibrationError, match=r"over half of this machine's memory. Save it with numpy\.savez"):
        CalibrationData.load(tmp_path / "a.npz").check(model())


def test_a_generator_is_kept_on_disk_and_can_be_read_again() -> None:
    data = CalibrationData.from_batches({"x": x(2) + i} for i in range(3))
    assert len(data.take(4)) == 4
    np.testing.assert_array_equal(joined(data), joined(data))
    assert data.folder is not None
    folder, part = data.folder.path, data.take(2)
    del data
    assert len(joined(part)) == 2 and folder.exists()
    del part
    gc.collect()
    assert not folder.exists()
