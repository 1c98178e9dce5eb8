"""Passes of a user's own, of onnx_ir and rules of onnxscript: in a pipeline, in a recipe, and by ``module:Name``."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as onnx_ir_passes
import pytest
from onnxscript import rewriter
from onnxscript.rewriter import pattern

import graphpress as gp
from graphpress.errors import GraphpressError, PassError, RecipeError
from graphpress.keys import BY
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from tests import kit

MODEL = "g (float[2] x) => (float[2] y) { a = Neg(x)  b = Neg(a)  c = Identity(b)  y = Relu(c) }"
OWN = '''
from dataclasses import dataclass
from onnxscript.rewriter import pattern
import graphpress as gp

@dataclass(frozen=True)
class Rename(gp.Pass):
    """Give every node a prefix."""
    name = "rename"
    prefix: str = "n"
    def run(self, model, ctx, report):
        for node in model.graph:
            node.name = f"{self.prefix}_{node.name}"

RULE = pattern.RewriteRule(lambda op, x: op.Neg(op.Neg(x)), lambda op, x: op.Abs(op.Abs(x)))
NOTHING = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that only this test knows."""
    (tmp_path / "borrowed_own.py").write_text(OWN)
    (tmp_path / "borrowed_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "borrowed_own"


def twice(op, x):  # type: ignore[no-untyped-def]
    return op.Neg(op.Neg(x))


def identity(op, x):  # type: ignore[no-untyped-def]
    return op.Identity(x)


class Twice(pattern.RewriteRuleClassBase):
    """Neg(Neg(x)) is x."""

    def pattern(self, op, x):  # type: ignore[no-untyped-def]
        return twice(op, x)

    def rewrite(self, op, x):  # type: ignore[no-untyped-def]
        return identity(op, x)


RULE = pattern.RewriteRule(twice, identity, name="twice")
RULES = [RULE, pattern.RewriteRuleSet([RULE]), Twice, rewriter.RewritePass([RULE])]


@pytest.mark.parametrize("rule", RULES, ids=["rule", "set", "class", "pass"])
def test_rules_of_onnxscript_stand_in_a_pipeline(rule: object) -> None:
    model = kit.parse(MODEL)
    after, (report, _) = Pipeline([rule, onnx_ir_passes.IdentityEliminationPass()]).run(model)
    assert kit.ops(after) == ["Relu"]
    assert (report.name, report.changed) == ("onnxscript-rules", 1)
    kit.assert_same_outputs(model, after)


def test_a_rule_says_which_it_was() -> None:
    after, _ = Pipeline([RULE]).run(kit.parse(MODEL))
    made = [n.metadata_props[BY] for n in after.graph if BY in n.metadata_props]
    assert made == ["onnxscript-rules/twice"]


def test_a_recipe_takes_a_pass_of_ones_own_a_rule_and_a_pass_of_onnx_ir(own: str) -> None:
    (rename,) = parse_passes(f"{own}:Rename{{prefix=p}}")
    steps = [rename, RULE, onnx_ir_passes.IdentityEliminationPass()]
    model, report = gp.compile(kit.parse(MODEL), steps, gate=False, prove=False)
    assert [p.name for p in report.passes] == ["rename", "onnxscript-rules", "IdentityEliminationPass"]
    assert kit.ops(model) == ["Relu"]
    assert all(n.name.startswith("p_") for n in model.graph)


def test_what_a_module_holds_is_found_by_name(own: str) -> None:
    text = f"{own}:Rename{{prefix=q}},{own}:RULE,onnx_ir.passes.common:IdentityEliminationPass"
    after, reports = Pipeline(parse_passes(text)).run(kit.parse(MODEL))
    assert kit.ops(after) == ["Abs", "Abs", "Relu"]
    assert [r.name for r in reports] == ["rename", "onnxscript-rules", "IdentityEliminationPass"]


def test_a_recipe_of_them_survives_its_text(own: str) -> None:
    recipe = Recipe.load(list(parse_passes(f"{own}:Rename{{prefix=q}},onnx_ir.passes.common:IdentityEliminationPass")))
    again = Recipe.load(recipe.to_json())
    assert again.to_json() == recipe.to_json()
    assert again.passes[0] == recipe.passes[0]
    assert recipe.set([f"{own}:Rename.prefix=r"]).passes[0].options() == {"prefix": "r"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:X", r"there is no module 'no_such_module'\. Put its folder on PYTHONPATH"),
        ("borrowed_broken:X", r"borrowed_broken fails at .*borrowed_broken\.py:1: ZeroDivisionError"),
        ("borrowed_own:Renam", "borrowed_own has no 'Renam'.*'Rename'"),
        ("borrowed_own:NOTHING", "a int is no pass"),
        ("borrowed_own:RULE{bits=3}", "it has no options"),
        ("borrowed_own:Rename{prefx=3}", "it has no option 'prefx'.*'prefix'"),
        ("borrowed_own:Rename{prefix=[1]}", "option 'prefix'"),
        ("onnx_ir.passes.common:IdentityEliminationPass{no=1}", "unexpected keyword|takes no arguments"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_cannot_be_had_is_said(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_passes(name)


@pytest.mark.parametrize("thing", [3, "relu", onnx_ir_passes.IdentityEliminationPass, gp.Pass], ids=repr)
def test_what_is_no_pass_is_refused(thing: object) -> None:
    with pytest.raises(RecipeError, match=r"is no pass\. Give instances"):
        Pipeline([thing])


def test_a_pass_of_onnx_ir_that_fails_is_named() -> None:
    class Broken(ir.passes.InPlacePass):
        """Divides by zero."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            raise ZeroDivisionError

    with pytest.raises(PassError, match="pass 'Broken'"):
        Pipeline([Broken()]).run(kit.parse(MODEL))


def test_a_pass_of_onnx_ir_that_makes_a_new_model_is_refused() -> None:
    class Copies(ir.passes.FunctionalPass):
        """Gives another model."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model.clone(), modified=True)

    with pytest.raises(GraphpressError, match="only in-place passes"):
        Pipeline([Copies()])


def test_a_runaway_rule_is_stopped() -> None:
    def grow(op, x):  # type: ignore[no-untyped-def]
        return op.Relu(x)

    def grown(op, x):  # type: ignore[no-untyped-def]
        return op.Relu(op.Abs(x))

    rule = pattern.RewriteRule(grow, grown, name="grow")
    for form in (rule, rewriter.RewritePass([rule])):
        with pytest.raises(PassError, match="rule 'grow' goes on for ever"):
            Pipeline([form]).run(kit.parse(MODEL))


def test_a_pipeline_takes_a_path(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    gp.save(kit.parse(MODEL), path)
    before = path.read_bytes()
    for given in (path, str(path)):
        after, _ = gp.Pipeline([RULE, onnx_ir_passes.IdentityEliminationPass()]).run(given)
        assert kit.ops(after) == ["Relu"]
    assert path.read_bytes() == before
    with pytest.raises(GraphpressError, match=r"none\.onnx: cannot be read"):
        gp.Pipeline([RULE]).run(tmp_path / "none.onnx")
