"""Laws of every adapter that the catalog finds, on every kind of site: exact in, exact out, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from graphpress import catalog
from graphpress.backends import reference
from graphpress.context import Context
from graphpress.errors import BadRequest, PassError
from graphpress.graph import edit
from graphpress.keys import ADAPTED
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.adapters import base, gone, low_rank
from graphpress.passes.recover.adapters.base import Adapter, Attached
from graphpress.passes.recover.adapters.lora import Lora
from graphpress.passes.recover.adapters.low_rank import LowRank
from graphpress.passes.recover.engine.student import Wanted, build, typed
from graphpress.passes.structure.layers.linear import Linear, linear
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal

CTX = Context(run=reference.execute, oracle=reference.execute, seed=3)
_MATMUL = "agraph (float[N, 5, 8] x, float[8, 12] w, float[12] b) => (float[N, 5, 12] y) { p = MatMul(x, w) q = Add(p, b) y = Relu(q) }"  # noqa: E501
_PUBLIC = "agraph (float[N, 8] x, float[8, 12] w) => (float[N, 12] y) { y = MatMul(x, w) }"
_GEMM = "agraph (float[N, 8] x, float[8, 12] w, float[12] b) => (float[N, 12] y) { p = Gemm(x, w, b) y = Tanh(p) }"
_TRANS = "agraph (float[N, 8] x, float[12, 8] w, float[12] b) => (float[N, 12] y) { p = Gemm<transB = 1>(x, w, b) y = Relu(p) }"  # noqa: E501
_CONV = "agraph (float[N, 6, 7, 7] x, float[4, 6, 3, 3] w, float[4] b) => (float[N, 4, 3, 3] y) { p = Conv<strides = [2, 2], kernel_shape = [3, 3]>(x, w, b) y = Relu(p) }"  # noqa: E501
_POINT = "agraph (float[N, 6, 4] x, float[8, 6, 1] w) => (float[N, 8, 4] y) { y = Conv(x, w) }"
_GROUPS = "agraph (float[N, 6, 5] x, float[4, 3, 2] w) => (float[N, 4, 4] y) { p = Conv<group = 2>(x, w) y = Relu(p) }"
TEXTS = {"matmul": _MATMUL, "public": _PUBLIC, "gemm": _GEMM, "transB": _TRANS, "conv": _CONV, "point": _POINT,
         "groups": _GROUPS}  # fmt: skip
WEIGHT4 = Quantize(mode="weight", weight="int4", kernels="preferred")
BOTH4 = Quantize(mode="dynamic", weight="int4", activation="int4", activation_granularity="per_token",
                 kernels="preferred")  # fmt: skip


def _float(text: str, dtype: type = np.float32) -> ir.Model:
    made = kit.parse(text if dtype is np.float32 else text.replace("float[", "double["))
    shapes = {v.name or "": v.shape.numpy() for v in made.graph.inputs if v.name != "x" and v.shape}
    for i, (name, shape) in enumerate(shapes.items()):
        value = next(v for v in made.graph.inputs if v.name == name)
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor((normal(*shape, seed=i) / 2).astype(dtype), name=name)
        made.graph.register_initializer(value)
    return typed(made)


def _double(text: str) -> ir.Model:
    return _float(text, np.float64)


def _int4(text: str) -> ir.Model:
    return quantizing.quantize(_float(text), WEIGHT4, target=None)[0]


def _w4a4(text: str) -> ir.Model:
    return quantizing.quantize(_float(text), BOTH4, target=None)[0]


SITES: dict[str, Callable[[], ir.Model]] = {
    f"{kind} {name}": (lambda make=make, text=text: make(text))  # type: ignore[misc]
    for name, text in TEXTS.items()
    for kind, make in (("float", _float), ("double", _double), ("int4", _int4), ("w4a4", _w4a4))
    if kind in ("float", "int4") or name in ("matmul", "public", "gemm", "transB")  # tokens, and what runs in float64
}
REFUSED = {"low_rank": {n for n in SITES if n.startswith(("float", "double"))} | {"int4 groups"}, "lora": set()}


def _layer(model: ir.Model) -> Linear:
    found = [view for node in model.graph if isinstance(view := linear(node), Linear)]
    assert len(found) == 1
    return found[0]


def _cases() -> Iterator[tuple[type[Adapter], str]]:
    for name, kind in catalog.adapters().items():
        yield from ((kind, site) for site in SITES if site not in REFUSED.get(name, ()))


def _feeds(model: ir.Model) -> dict[str, np.ndarray]:
    return kit.random_feeds(model, dims={"N": 4})


def _shake(model: ir.Model, attached: Attached, names: tuple[str, ...], size: float = 1.0) -> None:
    """Other elements for these constants, as training would give them."""
    for i, name in enumerate(names):
        value = model.graph.initializers[name]
        assert value.dtype is not None and value.shape is not None
        if value.dtype.is_floating_point():
            edit.overwrite(value, (size * normal(*value.shape.numpy(), seed=40 + i)).astype(value.dtype.numpy()))


def _valid(model: ir.Model) -> None:
    if not model.functions:  # the checker wants their opsets to be the model's
        common.CheckerPass(True)(model)


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.fixture(params=list(_cases()), ids=lambda c: f"{c[0].name}-{c[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Adapter, ir.Model]:
    kind, site = request.param
    return kind(rank=4), SITES[site]()


def test_the_catalog_finds_them() -> None:
    assert {"lora", "low_rank"} <= set(catalog.adapters())
    assert all(issubclass(kind, Adapter) and kind.name == name for name, kind in catalog.adapters().items())


def test_a_fresh_one_changes_no_output_and_keeps_the_names_that_others_read(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before = model.clone()
    result = _layer(model).output.name
    adapter.insert(model, _layer(model), CTX)
    _valid(model)
    kit.assert_same_outputs(before, model, _feeds(model))
    named = {o.name: {u.node.name for u in o.uses()} for m in (before,) for n in m.graph for o in n.outputs}
    (now,) = [o for n in model.graph for o in n.outputs if o.name == result]
    assert {u.node.name for u in now.uses()} == named[result]


def test_untouched_it_folds_to_the_very_model(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before, skeleton = _bytes(model), gone.Skeleton.of(model)
    adapter.insert(model, _layer(model), CTX)
    assert _bytes(model) != before
    assert gone.fold_all(model, skeleton, CTX, [_feeds(model)]) == 1
    assert _bytes(model) == before


def test_it_is_found_again_in_a_saved_model(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    made = adapter.insert(model, _layer(model), CTX)
    assert base.attached(ir.from_proto(ir.to_proto(model))) == [made]
    assert made.trained and set(made.trained) <= set(made.constants.values())
    assert made.bits(model) == sum(8 * v.const_value.nbytes for v in model.graph.initializers.values()
                                   if ADAPTED in v.metadata_props and v.const_value)  # fmt: skip


def test_training_it_changes_the_outputs(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before = kit.run(model, _feeds(model))
    made = adapter.insert(model, _layer(model), CTX)
    _shake(model, made, tuple(made.constants.values()))
    after = kit.run(model, _feeds(model))
    assert any(np.abs(after[n] - before[n]).max() > 1e-2 for n in before)


def test_what_training_left_is_folded_with_the_same_outputs(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    skeleton = gone.Skeleton.of(model)
    made = adapter.insert(model, _layer(model), CTX)
    _shake(model, made, made.trained, 0.2)
    whole = model.clone()
    gone.fold_all(model, skeleton, CTX, [_feeds(model)])
    double = next(iter(_feeds(model).values())).dtype == np.float64
    kit.assert_same_outputs(whole, model, _feeds(model), rtol=0, atol=1e-12 if double else 2e-6)
    assert gone.Skeleton.of(model).differences(model) == []
    _valid(model)


def test_it_is_refused_where_it_does_not_fit() -> None:
    for name, kind in catalog.adapters().items():
        for site in REFUSED.get(name, ()):
            model = SITES[site]()
            before = _bytes(model)
            assert not kind().fits(model, _layer(model))
            with pytest.raises(BadRequest, match=f"adapter '{name}' at '(MatMul|Gemm|Conv)_0'.*Leave this layer out"):
                kind().insert(model, _layer(model), CTX)
            assert _bytes(model) == before


def test_one_of_a_kind_at_a_site(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    adapter.insert(model, view := _layer(model), CTX)
    before = _bytes(model)
    with pytest.raises(BadRequest, match="it has one already"):
        adapter.insert(model, view, CTX)
    assert _bytes(model) == before


def test_what_is_drawn_follows_from_the_seed(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    other = model.clone()
    for one in (model, other):
        adapter.insert(one, _layer(one), CTX)
    assert _bytes(model) == _bytes(other)


def test_a_layer_in_a_body_of_control_flow_is_refused() -> None:
    model = kit.parse("""
    agraph (float[N, 8] x, bool c) => (float[N, 8] y) {
      y = If (c) <
        then_branch = left () => (float[N, 8] z) { w = Constant <value = float[8, 1] {1, 2, 3, 4, 5, 6, 7, 8}> ()
                                                   p = MatMul (x, w) z = Add (x, p) },
        else_branch = right () => (float[N, 8] z) { z = Identity (x) }
      >
    }""")
    (node,) = [n for n in edit.nodes(model) if n.op_type == "MatMul"]
    view = linear(node)
    assert isinstance(view, Linear)
    for kind in catalog.adapters().values():
        with pytest.raises(BadRequest, match="it is in a body of control flow"):
            kind().insert(model, view, CTX)


@pytest.mark.parametrize(
    "site", ["float matmul", "float conv", "int4 transB", "int4 conv", "w4a4 matmul", "w4a4 public"]
)
@pytest.mark.parametrize("name", sorted(catalog.adapters()))
def test_torch_computes_it_as_the_runtime_does_and_passes_gradients_to_what_it_trains(name: str, site: str) -> None:
    torch = pytest.importorskip("torch")
    from graphpress.backends.fx.build import build as differentiate

    model = SITES[site]()
    adapter = catalog.adapters()[name](rank=3)
    if not adapter.fits(model, _layer(model)):
        pytest.skip("refused there, which another test holds")
    made = adapter.insert(model, _layer(model), CTX)
    _shake(model, made, tuple(made.constants.values()), 0.5)
    feeds = _feeds(model)
    student = build(model, Context(differentiate=differentiate), Wanted(["y"]))
    chosen = student.train(made.trained)
    result = student({n: torch.from_numpy(a) for n, a in feeds.items()})["y"]
    np.testing.assert_allclose(result.detach().numpy(), kit.run(model, feeds)["y"], rtol=0, atol=2e-5)
    result.square().sum().backward()
    assert len(chosen) == len(made.trained) and all(float(p.grad.abs().max()) > 1e-3 for p in chosen.values())


# -- the check bites ---------------------------------------------------------------------------------------------------


def _folded() -> tuple[ir.Model, gone.Skeleton]:
    model = _int4(_MATMUL)
    skeleton = gone.Skeleton.of(model)
    LowRank(4).insert(model, _layer(model), CTX)
    gone.fold_all(model, skeleton, CTX)
    gone.check(model, skeleton)
    return model, skeleton


def _plant_node(model: ir.Model) -> None:
    last = list(model.graph)[-1]
    made = edit.new_node("Identity", [last.inputs[0]], before=last)
    edit.like(made.outputs[0], last.inputs[0])  # type: ignore[arg-type]
    edit.set_input(last, 0, made.outputs[0])


def _plant_constant(model: ir.Model) -> None:
    edit.add_const(model.graph, np.zeros(3, np.float32), "left_behind")


def _plant_note(model: ir.Model) -> None:
    next(iter(model.graph)).metadata_props["graphpress.low_rank"] = "1"


def _plant_note_on_a_constant(model: ir.Model) -> None:
    model.graph.initializers["w"].metadata_props[ADAPTED] = "{}"


def _plant_function(model: ir.Model) -> None:
    function = catalog.ops()["Hadamard"].function()
    model.functions[function.identifier()] = function


def _plant_opset(model: ir.Model) -> None:
    model.opset_imports["com.example"] = 1


def _plant_model_note(model: ir.Model) -> None:
    model.metadata_props["rank"] = "4"


def _rename(model: ir.Model) -> None:
    list(model.graph)[-1].inputs[0].name = "p_bare"  # type: ignore[union-attr]


def _retype(model: ir.Model) -> None:
    value = model.graph.initializers["w"]
    value.shape = ir.Shape([12, 8])


PLANTS = [_plant_node, _plant_constant, _plant_note, _plant_note_on_a_constant, _plant_function, _plant_opset,
          _plant_model_note, _rename, _retype]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: p.__name__.strip("_"))
def test_what_is_left_behind_is_found(plant: Callable[[ir.Model], None]) -> None:
    model, skeleton = _folded()
    plant(model)
    with pytest.raises(PassError, match=r"the folded model is not the one before: (left|missing)"):
        gone.check(model, skeleton)


def test_an_adapter_that_is_still_there_is_named_even_if_it_was_there_before() -> None:
    model = _int4(_MATMUL)
    Lora(2).insert(model, _layer(model), CTX)
    with pytest.raises(PassError, match="lora at MatMul_0"):
        gone.check(model, gone.Skeleton.of(model))


def test_outputs_that_moved_are_found_and_the_tolerance_is_the_stated_one() -> None:
    model = _float(_MATMUL)
    feeds = _feeds(model)
    for share, refused in ((2e-4, True), (5e-5, False)):
        other = model.clone()
        value = other.graph.initializers["w"]
        array = np.array(edit.constant(value))
        edit.overwrite(value, (array * np.float32(1 + share)).astype(np.float32))
        edit.overwrite(
            other.graph.initializers["b"],
            np.array(edit.constant(model.graph.initializers["b"])) * np.float32(1 + share),
        )
        if refused:
            with pytest.raises(PassError, match=r"output 'y' is 0\.0002 of its size off .* 0\.0001 is allowed"):
                gone.same_outputs(model, other, reference.execute, [feeds])
        else:
            gone.same_outputs(model, other, reference.execute, [feeds])


# -- each of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [s for s in SITES if s.startswith(("double", "float"))])
def test_lora_is_w_plus_alpha_over_r_b_a_to_the_last_bits(site: str) -> None:
    """Against numpy in float64: the layer with the merged weight."""
    model = SITES[site]()
    plain, view = model.clone(), _layer(model)
    made = Lora(rank=3, alpha=6.0).insert(model, view, CTX)
    _shake(model, made, made.trained, 0.5)
    a, b = made.array(model, "a"), made.array(model, "b")
    if _layer(plain).transposed:
        a, b = a.T, b.T
    merged = _layer(plain).weight() + 2.0 * (b @ a).reshape(_layer(plain).shape)
    edit.overwrite(_layer(plain).weight_value, np.ascontiguousarray(merged.T if _layer(plain).transposed else merged))
    kit.assert_same_outputs(plain, model, _feeds(model), rtol=0, atol=1e-12 if site.startswith("double") else 1e-5)


def test_lora_starts_with_kaimings_uniform_and_zero() -> None:
    model = _float("agraph (float[N, 400] x, float[400, 50] w) => (float[N, 50] y) { y = MatMul(x, w) }")
    made = Lora(rank=30).insert(model, _layer(model), CTX)
    a = made.array(model, "a")
    assert a.shape == (400, 30) and not made.array(model, "b").any()
    assert np.abs(a).max() <= 400**-0.5 and a.std() == pytest.approx(400**-0.5 / 3**0.5, rel=0.03)


def test_lora_refuses_a_weight_that_others_read_too() -> None:
    model = (quantizing.model(
        "agraph (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { h = MatMul(x, w) y = MatMul(h, w) }",
        {"w": normal(8, 8)},
    ))  # fmt: skip
    views = [linear(n) for n in model.graph]
    assert [Lora().fits(model, v) for v in views if isinstance(v, Linear)] == [False, False]


def test_low_rank_starts_with_the_best_approximation_of_what_rounding_loses() -> None:
    """(Eckart-Young) what is left is the energy of the other singular values, and never more than all of it."""
    model = _int4("agraph (float[N, 32] x, float[32, 48] w) => (float[N, 48] y) { y = MatMul(x, w) }")
    view = _layer(model)
    dq = view.node.inputs[1]
    assert dq is not None and dq.producer() is not None
    codes = kit.run(model, {"x": np.eye(32, dtype=np.float32)})["y"]  # Q(W), as the runtime has it
    lost = view.weight().astype(np.float64).T - codes
    made = LowRank(rank=8).insert(model, view, CTX)
    left, right = low_rank.factors(made.array(model, "down"), made.array(model, "up"))
    s = np.linalg.svd(lost, compute_uv=False)
    rest = np.sum((lost - (left @ right).T) ** 2)
    assert rest == pytest.approx(np.sum(s[8:] ** 2), rel=1e-5) and rest < np.sum(lost**2)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.sqrt(s[:8]), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), np.sqrt(s[:8]), rtol=1e-5)


@pytest.mark.parametrize("site", ["int4 matmul", "int4 conv", "w4a4 transB"])
def test_low_rank_at_full_strength_is_the_quantized_layer_plus_l_r_of_what_it_reads(site: str) -> None:
    model = SITES[site]()
    plain, rank = model.clone(), 5
    made = LowRank(rank).insert(model, _layer(model), CTX)
    gamma = made.array(model, "gamma")
    faded = np.linspace(1, 0.2, rank, dtype=np.float32).reshape(gamma.shape)
    edit.overwrite(made.value(model, "gamma"), faded)
    left, right = low_rank.factors(made.array(model, "down"), made.array(model, "up"))
    view = _layer(plain)
    added = ((left * faded.ravel()) @ right).reshape(view.shape)
    effective = base.evaluated(plain, view.node.inputs[1], CTX)  # type: ignore[arg-type]
    weight = effective + (added.T if view.transposed else added)
    edit.set_input(view.node, 1, edit.add_const(plain.graph, weight.astype(np.float32), "effective"))
    kit.assert_same_outputs(plain, model, _feeds(model), rtol=0, atol=5e-6)


def test_low_rank_is_not_folded_while_it_counts_and_nothing_changes() -> None:
    model = _int4(_MATMUL)
    made = LowRank(4).insert(model, _layer(model), CTX)
    edit.overwrite(made.value(model, "gamma"), np.array([0, 0, 0.25, 0], np.float32))
    before = _bytes(model)
    with pytest.raises(BadRequest, match=r"its branch still counts: gamma is up to 0\.25\. Let it fade to 0 first"):
        LowRank.fold(model, made, CTX)
    assert _bytes(model) == before


def test_halving_keeps_the_product_of_what_is_kept_in_order_of_its_singular_values() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(20, 8)), rng.normal(size=(8, 15))
    l, r = low_rank.halved(left, right, 4)  # noqa: E741
    assert l.shape == left.shape and r.shape == right.shape and not l[:, 4:].any() and not r[4:].any()
    np.testing.assert_allclose(l @ r, left[:, :4] @ right[:4], rtol=0, atol=1e-12)
    s = np.linalg.svd(left[:, :4] @ right[:4], compute_uv=False)[:4]
    np.testing.assert_allclose(np.linalg.norm(l[:, :4], axis=0) ** 2, s, rtol=1e-10)
    assert (np.diff(np.linalg.norm(l[:, :4], axis=0)) <= 0).all()


@pytest.mark.parametrize("make", [lambda: Lora(rank=0), lambda: Lora(alpha=-1.0), lambda: LowRank(rank=0)])
def test_bad_options_are_refused_by_name(make: Callable[[], Adapter]) -> None:
    with pytest.raises(BadRequest, match=r"adapter '(lora|low_rank)'"):
        make()
