"""Laws of every adapter that the catalog finds, on every kind of site: exact in, exact out, or refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.backends import reference
from graphpress.context import Context
from graphpress.errors import BadRequest, PassError
from graphpress.graph import edit
from graphpress.keys import ADAPTED
from graphpress.passes.recover.adapters import base, gone
from graphpress.passes.recover.adapters.base import Adapter
from graphpress.passes.recover.adapters.lora import Lora
from graphpress.passes.recover.adapters.low_rank import LowRank
from graphpress.passes.recover.engine.student import Excerpt, build
from graphpress.passes.structure.layers.linear import Linear, linear
from tests import kit
from tests.passes.adapting import CTX, MATMUL, SITES, feeds, floats, int4, layer, raw, shake, valid

FITTING = {
    "lora": set(SITES),
    "svd": {n for n in SITES if n.startswith(("float", "double"))} - {"float groups"},
    "low_rank": {n for n in SITES if n.startswith(("int4", "w4a4"))} - {"int4 groups"},
}


@pytest.fixture(params=itertools.product(catalog.adapters(), SITES), ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Adapter, ir.Model]:
    """Each at each site where it fits."""
    name, site = request.param
    adapter, model = catalog.adapters()[name](), SITES[site]()
    if not adapter.fits(model, layer(model)):
        pytest.skip("it is refused there, cleanly as another test holds")
    return adapter, model


def same(before: ir.Model, after: ir.Model, *, splits: bool) -> None:
    """Outputs are equal, of sums of floats to their last digits."""
    double = next(iter(feeds(before).values())).dtype == np.float64
    kit.assert_same_outputs(before, after, feeds(before), rtol=0, atol=splits * (1e-12 if double else 4e-6))


def test_the_catalog_finds_them() -> None:
    assert {"lora", "low_rank", "svd"} <= set(catalog.adapters())
    assert all(issubclass(kind, Adapter) and kind.name == name for name, kind in catalog.adapters().items())


def test_a_fresh_one_changes_no_output_and_keeps_the_names_that_others_read(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before = model.clone()
    result = layer(model).output.name
    adapter.insert(model, layer(model), CTX)
    valid(model)
    same(before, model, splits=adapter.splits)
    named = {o.name: {u.node.name for u in o.uses()} for m in (before,) for n in m.graph for o in n.outputs}
    (now,) = [o for n in model.graph for o in n.outputs if o.name == result]
    assert {u.node.name for u in now.uses()} == named[result]


def test_untouched_it_folds_to_the_very_model(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before, skeleton = raw(model), gone.Skeleton.of(model)
    adapter.insert(model, layer(model), CTX)
    assert raw(model) != before
    whole = model.clone()
    assert gone.fold_all(model, skeleton, CTX, [feeds(model)]) == 1
    if adapter.splits:  # a sum of floats: to the last bits but one
        same(whole, model, splits=True)
        weights = [ir.from_proto(onnx.ModelProto.FromString(b)).graph.initializers["w"] for b in (before, raw(model))]
        old, new = (np.asarray(edit.constant(w)) for w in weights)
        np.testing.assert_allclose(new, old, rtol=0, atol=4 * np.finfo(old.dtype).eps * np.abs(old).max())
    else:
        assert raw(model) == before


def test_it_is_found_again_in_a_saved_model(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    made = adapter.insert(model, layer(model), CTX)
    assert base.attached(ir.from_proto(ir.to_proto(model))) == [made]
    assert made.trained and set(made.trained) <= set(made.constants.values())
    assert made.bits(model) == sum(8 * v.const_value.nbytes for v in model.graph.initializers.values()
                                   if ADAPTED in v.metadata_props and v.const_value)  # fmt: skip


def test_training_it_changes_the_outputs(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    before = kit.run(model, feeds(model))
    made = adapter.insert(model, layer(model), CTX)
    shake(model, made, tuple(made.constants.values()))
    after = kit.run(model, feeds(model))
    assert any(np.abs(after[n] - before[n]).max() > 1e-2 for n in before)


def test_what_training_left_is_folded_with_the_same_outputs(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    skeleton = gone.Skeleton.of(model)
    made = adapter.insert(model, layer(model), CTX)
    shake(model, made, made.trained, 0.2)
    whole = model.clone()
    gone.fold_all(model, skeleton, CTX, [feeds(model)])
    double = next(iter(feeds(model).values())).dtype == np.float64
    kit.assert_same_outputs(whole, model, feeds(model), rtol=0, atol=1e-12 if double else 2e-6)
    assert gone.Skeleton.of(model).differences(model) == []
    valid(model)


@pytest.mark.parametrize("name", sorted(catalog.adapters()))
def test_it_fits_somewhere_and_is_refused_elsewhere_with_a_reason_and_no_trace(name: str) -> None:
    kind, fitting = catalog.adapters()[name], set()
    for site, make in SITES.items():
        model = make()
        before, fits = raw(model), kind().fits(model, layer(model))
        fitting |= {site} if fits else set()
        if not fits:
            with pytest.raises(BadRequest, match=f"adapter '{name}' at '(MatMul|Gemm|Conv)_0': .*Leave this layer out"):
                kind().insert(model, layer(model), CTX)
        assert fits or raw(model) == before
    assert fitting
    assert fitting == FITTING.get(name, fitting)


def test_one_of_a_kind_at_a_site(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    adapter.insert(model, view := layer(model), CTX)
    before = raw(model)
    with pytest.raises(BadRequest, match="it has one already"):
        adapter.insert(model, view, CTX)
    assert raw(model) == before


def test_what_is_drawn_follows_from_the_seed(case: tuple[Adapter, ir.Model]) -> None:
    adapter, model = case
    other = model.clone()
    for one in (model, other):
        adapter.insert(one, layer(one), CTX)
    assert raw(model) == raw(other)


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
    if not adapter.fits(model, layer(model)):
        pytest.skip("refused there, which another test holds")
    made = adapter.insert(model, layer(model), CTX)
    shake(model, made, tuple(made.constants.values()), 0.5)
    given = feeds(model)
    student = build(model, Context(differentiate=differentiate), Excerpt(["y"]))
    chosen = student.train(made.trained)
    result = student({n: torch.from_numpy(a) for n, a in given.items()})["y"]
    np.testing.assert_allclose(result.detach().numpy(), kit.run(model, given)["y"], rtol=0, atol=2e-5)
    result.square().sum().backward()
    assert len(chosen) == len(made.trained) and all(float(p.grad.abs().max()) > 1e-3 for p in chosen.values())


# -- the check bites ---------------------------------------------------------------------------------------------------


def _folded() -> tuple[ir.Model, gone.Skeleton]:
    model = int4(MATMUL)
    skeleton = gone.Skeleton.of(model)
    LowRank(4).insert(model, layer(model), CTX)
    gone.fold_all(model, skeleton, CTX)
    gone.check_gone(model, skeleton)
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
        gone.check_gone(model, skeleton)


def test_an_adapter_that_is_still_there_is_named_even_if_it_was_there_before() -> None:
    model = int4(MATMUL)
    Lora(2).insert(model, layer(model), CTX)
    with pytest.raises(PassError, match="lora at MatMul_0"):
        gone.check_gone(model, gone.Skeleton.of(model))


def test_outputs_that_moved_are_found_and_the_tolerance_is_the_stated_one() -> None:
    model = floats(MATMUL)
    given = feeds(model)
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
                gone.same_outputs(model, other, reference.execute, [given])
        else:
            gone.same_outputs(model, other, reference.execute, [given])
