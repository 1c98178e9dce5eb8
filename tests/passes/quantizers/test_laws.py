"""Laws of every quantizer that the catalog finds: codes and numbers, its form in a graph, its size, its options."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import graphpress as gp
from graphpress import catalog
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.fold.pack_codes import PackCodes
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import QParams, Quantizer
from graphpress.types import PER_TENSOR, Plan, Role, Scheme, Site, per_channel, per_group
from tests import kit

GRAINS = [PER_TENSOR, per_channel(0), per_channel(1), per_group(0, 8), per_group(1, 16)]
TYPES = ["int8", "uint8", "int4", "uint4", "int3", "int2", "uint2", "ternary", "binary", "float8e4m3fn", "float8e5m2"]


def cases() -> list[tuple[str, Scheme]]:
    """Every quantizer with each of its schemes: types and symmetry with one scale a channel, then the granularities."""
    found = []
    for name, cls in catalog.quantizers().items():
        schemes = [Scheme(t, per_channel(1), symmetric=s, quantizer=name) for t in TYPES for s in (True, False)]
        fine = [s for s in schemes if cls().refusal(s) is None]
        assert fine, f"{name} takes no scheme"
        found += fine + [dataclasses.replace(fine[-1], granularity=g) for g in GRAINS]
        found += [dataclasses.replace(s, observer="mse") for s in fine[:2]]
    return list(dict.fromkeys((s.quantizer, s) for s in found))


def case(x: object) -> str:
    return str(x).replace(" ", "-")


CASES = pytest.mark.parametrize(("name", "scheme"), cases(), ids=case)
EACH = pytest.mark.parametrize("name", catalog.quantizers())


def weight(seed: int = 0, shape: tuple[int, int] = (40, 36)) -> np.ndarray:
    made = np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)
    made[0], made[:, 0] = 0, 0
    return made


def fitted(name: str, scheme: Scheme, w: np.ndarray) -> tuple[Quantizer, QParams]:
    quantizer = named(name)
    return quantizer, quantizer.fit(w, scheme)


def ladder(quantizer: Quantizer, params: QParams, scheme: Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of all codes of the scheme at each element, ascending: [codes, *shape]."""
    every = quantizer.every_code(scheme)
    return np.stack([quantizer.dequantize(np.full(shape, c, every.dtype), params, scheme) for c in every])


def in_torch(params: QParams) -> QParams:
    def tensor(a: np.ndarray) -> torch.Tensor:
        floats = np.issubdtype(a.dtype, np.floating)  # float8 is none to numpy
        return torch.from_numpy(np.asarray(a) if floats else a.astype(np.float32).astype(np.int32))

    return dataclasses.replace(params.mapped(tensor), tables={n: torch.from_numpy(t) for n, t in params.tables.items()})


@CASES
def test_a_number_becomes_one_of_its_two_neighbours(name: str, scheme: Scheme) -> None:
    w = weight()
    quantizer, params = fitted(name, scheme, w)
    back = quantizer.dequantize(quantizer.quantize(w, params, scheme), params, scheme)
    steps = ladder(quantizer, params, scheme, w.shape)
    assert (np.diff(steps, axis=0) > 0).all()
    below = np.where(steps <= w, steps, steps[0]).max(axis=0)
    above = np.where(steps >= w, steps, steps[-1]).min(axis=0)
    assert ((back == below) | (back == above)).all()
    assert (back[w == 0] == 0).all() or not quantizer.keeps_zero


@CASES
def test_numbers_of_codes_are_given_back(name: str, scheme: Scheme) -> None:
    w = weight(1)
    quantizer, params = fitted(name, scheme, w)
    for code in quantizer.every_code(scheme):
        codes = np.full(w.shape, code)
        again = quantizer.quantize(quantizer.dequantize(codes, params, scheme), params, scheme)
        np.testing.assert_array_equal(again.astype(codes.dtype), codes)


@CASES
def test_torch_says_the_same_as_numpy(name: str, scheme: Scheme) -> None:
    w = weight(2)
    quantizer, params = fitted(name, scheme, w)
    tensor = torch.from_numpy(w)
    theirs = quantizer.fit(tensor, scheme)
    np.testing.assert_allclose(theirs.scale.numpy(), params.scale, rtol=1e-6)
    np.testing.assert_array_equal(theirs.zero_point.numpy().astype(np.float32), params.zero_point.astype(np.float32))
    same = in_torch(params)
    codes = quantizer.quantize(tensor, same, scheme)
    np.testing.assert_array_equal(codes.numpy(), quantizer.quantize(w, params, scheme).astype(codes.numpy().dtype))
    back = quantizer.dequantize(quantizer.quantize(w, params, scheme), params, scheme)
    np.testing.assert_array_equal(quantizer.dequantize(codes, same, scheme).numpy(), back)
    np.testing.assert_allclose(quantizer.straight_through(tensor, same, scheme).numpy(), back, rtol=1e-6, atol=1e-7)


@CASES
def test_gradients_go_straight_through_and_to_the_scale(name: str, scheme: Scheme) -> None:
    w = weight(3)
    quantizer, params = fitted(name, scheme, w)
    x = torch.from_numpy(w).requires_grad_()
    given = in_torch(params)
    scale = given.scale.requires_grad_()
    quantizer.straight_through(x, given, scheme).sum().backward()
    low, high = quantizer.ends(params, w.shape, scheme)
    assert x.grad is not None and scale.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), ((w > low) & (w < high)).astype(np.float32), atol=1e-5)
    assert torch.isfinite(scale.grad).all() and scale.grad.abs().max() > 0
    assert "scale" in quantizer.learnable(scheme)


def written(w: np.ndarray, scheme: Scheme, *, fold: bool) -> ir.Model:
    """``x w`` with the weight in a scheme."""
    rows, columns = w.shape
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", rows]))
    tensor = ir.tensor(w, name="w")
    value = ir.Value(name="w", type=ir.TensorType(tensor.dtype), shape=ir.Shape(w.shape), const_value=tensor)
    node = ir.node("MatMul", [x, value], name="m")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["N", columns])
    opset = {"": 21 if scheme.bits > 2 else 25}
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[value], opset_imports=opset, name="g")
    model = ir.Model(graph, ir_version=10 if scheme.bits > 2 else 13)
    ApplyPlan(Plan({Site("m", 1, Role.WEIGHT): scheme})).run(model, Context(), PassReport())
    if fold:
        FoldWeights().run(model, Context(), PassReport())
        PackCodes().run(model, Context(), PassReport())
    return model


@CASES
@pytest.mark.parametrize("fold", [False, True])
def test_the_graph_computes_what_the_quantizer_says(name: str, scheme: Scheme, fold: bool) -> None:
    """In ONNX Runtime without optimisation, before the weight is stored as codes and after."""
    w = weight(4)
    quantizer, params = fitted(name, scheme, w)
    model = written(w, scheme, fold=fold)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = kit.run(model, {"x": np.eye(len(w), dtype=np.float32)})["y"]
    back = quantizer.dequantize(quantizer.quantize(w, params, scheme), params, scheme)
    kept = quantizer.clipped(w, params, scheme) if scheme.dtype != scheme.storage else w
    if scheme.dtype != scheme.storage:
        back = quantizer.dequantize(quantizer.quantize(kept, params, scheme), params, scheme)
    np.testing.assert_array_equal(found, back)


SIZED = [
    c for c in cases() if c[1].observer == "minmax" and c[1].granularity in (per_channel(1), per_group(1, 16))
]  # what else there is takes as many scales


def sizes(name: str, scheme: Scheme, width: int, path: Path) -> tuple[int, float]:
    """Bytes of the file of a matrix [1024, width], and those of the formula."""
    w = np.random.default_rng(5).standard_normal((1024, width)).astype(np.float32)
    gp.save(written(w, scheme, fold=True), path)
    return path.stat().st_size, named(name).bits(w.shape, scheme) / 8


@pytest.mark.parametrize(("name", "scheme"), SIZED, ids=case)
def test_a_file_takes_as_many_bytes_as_it_says(name: str, scheme: Scheme, tmp_path: Path) -> None:
    found, told = sizes(name, scheme, 1024, tmp_path / "m.onnx")
    dense = {"int3": 1280, "ternary": 1536, "binary": 2048}  # widths of which names and nodes are a hundredth at most
    if scheme.dtype not in dense:
        assert found == pytest.approx(told, rel=0.01)
        return
    assert found == pytest.approx(told, abs=0.01 * 2**19)  # a hundredth of the same codes in 4 bits
    found, told = sizes(name, scheme, dense[scheme.dtype], tmp_path / "m.onnx")
    assert found == pytest.approx(told, rel=0.01)


ONE_TYPE = ("binary", "ternary", "fdb", "mxfp4", "mxfp8", "nvfp4")  # formats that are stored in one width


@EACH
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_more_bits_are_never_worse(name: str, observer: str) -> None:
    quantizer, w, lost = named(name), weight(6, (64, 64)), []
    for dtype in ("int2", "int3", "int4", "int8", "float8e5m2", "float8e4m3fn"):
        scheme = Scheme(dtype, per_channel(1), observer=observer, quantizer=name)
        if quantizer.refusal(scheme) is None:
            params = quantizer.fit(w, scheme)
            back = quantizer.dequantize(quantizer.quantize(w, params, scheme), params, scheme)
            lost.append(np.square(back - w).sum())
    assert len(lost) > 1 or name in ONE_TYPE
    assert all(b <= a for a, b in itertools.pairwise(lost))


@EACH
def test_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match="no option 'colour'"):
        named(f"{name}:colour=blue")
    for field in dataclasses.fields(catalog.quantizers()[name]):
        with pytest.raises(BadRequest, match=field.name):
            named(f"{name}:{field.name}=[1]")


def test_a_quantizer_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadRequest, match="no quantizer 'afine'"):
        named("afine")


@CASES
def test_schemes_go_through_text_and_json(name: str, scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme
    assert Scheme.from_json(scheme.to_json()) == scheme


@EACH
def test_what_is_not_finite_is_refused(name: str) -> None:
    broken = weight(0, (40, 36)).astype(np.float32)
    broken[7, 3] = np.nan
    with pytest.raises(BadRequest, match="NaN or infinity"):
        named(name).fit(broken, next(s for n, s in cases() if n == name))
