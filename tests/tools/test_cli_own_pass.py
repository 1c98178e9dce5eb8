"""A user's own pass by module:Class: from the command line, from a recipe, and every way it can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

import graphpress as gp
from graphpress.errors import RecipeError
from graphpress.recipe import Recipe
from graphpress.tools.cli.app import app, guarded
from tests import warm

OWN = '''
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass
from onnxscript.rewriter import pattern

import graphpress as gp
from graphpress.graph import edit


@dataclass(frozen=True)
class Swap(gp.Pass):
    """Put one operator in the place of another."""

    old: str = "Relu"
    new: str = "Abs"
    most: int = 9

    name = "swap"
    numerics = gp.Pass.numerics.LOSSY

    def run(self, model, ctx, report):
        for node in list(edit.nodes(model)):
            if node.op_type == self.old and report.changed < self.most:
                made = edit.new_node(self.new, node.inputs, before=node, origin=node)
                edit.replace(node.outputs[0], made.outputs[0])
                edit.remove([node])
                report.changed += 1


class Bare(gp.Pass):
    name = "bare"

    def run(self, model, ctx, report): ...


@dataclass(frozen=True)
class Nameless(gp.Pass):
    def run(self, model, ctx, report): ...


@dataclass(frozen=True)
class Idle(gp.Pass):
    name = "idle"


@dataclass(frozen=True)
class Odd(gp.Pass):
    how: "ir.Model" = None
    name = "odd"

    def run(self, model, ctx, report): ...


@dataclass(frozen=True)
class Wordy(gp.Pass):
    name = "wordy"

    def run(self, model, ctx, report):
        raise ValueError("first\\n  second")


class Inner:
    Swap = Swap


def function(model): ...


def twice(op, x):
    return op.Neg(op.Neg(x))


def once(op, x):
    return op.Abs(x)


RULE = pattern.RewriteRule(twice, once, name="twice")
MODEL = """g (float[4] x) => (float[4] y) { a = Neg(x) b = Neg(a) c = Identity(b) y = Relu(c) }"""
'''
BROKEN = {
    "raises.py": (
        "import json\n\n\ndef f():\n    return 1 / 0\n\n\nf()\n",
        "raises.py:5: ZeroDivisionError: division by zero",
    ),
    "syntax.py": ("x = (1,\n", "syntax.py:1: SyntaxError: '(' was never closed"),
    "lacks.py": (
        "\nimport no_such_package_at_all\n",
        "lacks.py:2: ModuleNotFoundError: No module named 'no_such_package",
    ),
    "wordy.py": ("raise ValueError('first\\n  second\\n')\n", "wordy.py:1: ValueError: first second"),
    "leaves.py": ("import sys\nsys.exit(3)\n", "leaves.py:2: SystemExit: 3"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model, a file of the user's, and others that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_passes", *(f.removesuffix(".py") for f in BROKEN)):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("own_passes.py").write_text(OWN)
    for name, (text, _) in BROKEN.items():
        Path(name).write_text(text)
    body = "g (float[4] x) => (float[4] y) { a = Neg(x) b = Neg(a) c = Identity(b) y = Relu(c) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}'), "m.onnx")
    return tmp_path


def ops(path: str) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


def test_from_the_command_line_in_a_process_of_its_own(here: Path) -> None:
    passes = "own_passes:Swap{new=Exp,most=3},own_passes:RULE,own_passes:IdentityEliminationPass,remove-dead"
    done = warm.graphpress("opt", "m.onnx", "-p", passes, "--out", "out.onnx", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert [p["pass"] for p in json.loads(done.stdout)["passes"]] == [
        "swap", "onnxscript-rules", "IdentityEliminationPass", "remove-dead",
    ]  # fmt: skip
    assert ops("out.onnx") == ["Abs", "Exp"]


WRONG = {
    "own_pases:Swap": "there is no module 'own_pases'. Did you mean 'own_passes'",
    "own_passes.deeper:Swap": "there is no module 'own_passes.deeper'",
    "own_passes:Swop": "own_passes has no 'Swop'. Did you mean 'Swap'",
    "own_passes:": "own_passes has no ''",
    "own_passes:function": "a function is no pass. Give instances",
    "own_passes:MODEL": "a str is no pass",
    "own_passes:Bare": "it is no dataclass. Put @dataclass(frozen=True) above it",
    "own_passes:Nameless": "it has no name. Set name",
    "own_passes:Idle": "it has no method run(model, ctx, report)",
    "own_passes:Odd{how=1}": "its options have types that no text can give",
    "own_passes:Swap{neu=Exp}": "it has no option 'neu'. Did you mean 'new'",
    "own_passes:Swap{most=many}": "option 'most'",
    "own_passes:RULE{a=1}": "it has no options",
    "own_passes:IdentityEliminationPass{a=1}": "IdentityEliminationPass() takes no arguments",
    **{f"{name.removesuffix('.py')}:Swap": says for name, (_, says) in BROKEN.items()},
}


@pytest.mark.parametrize("passes", WRONG)
def test_what_is_wrong_is_said_in_one_line(here: Path, capsys: pytest.CaptureFixture[str], passes: str) -> None:
    code = guarded(lambda: app(["opt", "m.onnx", "-p", passes, "--out", "out.onnx"], standalone_mode=False))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert err.startswith(f"graphpress: pass '{passes.partition('{')[0]}': ")
    assert WRONG[passes] in err
    assert not Path("out.onnx").exists()


def test_several_lines_of_what_it_raises_become_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["opt", "m.onnx", "-p", "own_passes:Wordy", "--out", "out.onnx"]
    assert guarded(lambda: app(command, standalone_mode=False)) == 2
    expected = "graphpress: pass 'wordy': ValueError: first second. This is a bug of the pass.\n"
    assert capsys.readouterr().err == expected


def test_in_a_recipe_and_back_from_its_dump(here: Path) -> None:
    Path("r.yaml").write_text(
        "name: r\npasses:\n  - own_passes:Swap: {new: Exp}\n  - own_passes:Inner.Swap\n  - remove-dead\n"
    )
    recipe = Recipe.load("r.yaml")
    assert [(p.name, p.options().get("new")) for p in recipe.passes[:2]] == [("swap", "Exp"), ("swap", "Abs")]
    Path("again.yaml").write_text(recipe.dump())
    assert Recipe.load("again.yaml") == recipe
    for owner in ("swap", "own_passes:Swap"):
        assert [p.options().get("most") for p in recipe.set([f"{owner}.most=1"]).passes] == [1, 1, None]
    with pytest.raises(RecipeError, match=r"no option 'mots'\. Did you mean 'most'"):
        recipe.set(["swap.mots=1"])
    _, report = gp.compile("m.onnx", "r.yaml", gate=False, prove=False)
    assert [(p.name, p.changed) for p in report.passes] == [("swap", 1), ("swap", 0), ("remove-dead", 0)]


def test_the_whole_command_compiles_by_such_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("name: r\npasses:\n  - own_passes:Swap\n")
    assert guarded(lambda: app(["compile", "m.onnx", "--recipe", "r.yaml", "--out", "out"], standalone_mode=False)) == 0
    assert ops("out/model.onnx") == ["Neg", "Neg", "Identity", "Abs"]
    assert "own_passes:Swap" in Path("out/recipe.yaml").read_text()
