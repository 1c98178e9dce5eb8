"""Every pass that rewrites has a graph before and the graph that it must become, in ONNX text: FAMILY/pairs/PASS.txt.

A file holds options, a line ``before``, a graph, a line ``expected``, a graph. Options, one a line:
``passes:`` the pipeline (by default the pass the file is named for; a name may go on after a dot: quantize.static.txt),
``constants:`` how far float constants may be off, as a share of the largest (default: not at all),
``weights:`` inputs that are taken for constants, too long to be written down; ``constants: inf`` holds such to their
type and shape only,
``outputs:`` the largest difference of outputs, or ``lossy`` (default: none, bit for bit).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.backends import ort, reference
from graphpress.context import Context
from graphpress.observe.data import CalibrationData
from graphpress.recipe import parse_passes
from graphpress.target import Target
from tests import kit

FILES = sorted(Path(__file__).parent.glob("*/pairs/*.txt"))
# Passes that have no such pair, and why.
WITHOUT = {
    "infer-shapes": "writes shapes and types down; the nodes stay",
    **dict.fromkeys(
        ("zeroq", "genie-d", "dfq-boxes", "generate-tokens", "choose-samples"), "makes data; the graph stays"
    ),
    **dict.fromkeys(("gptq", "awq"), "chooses other numbers for the same graph"),
    "svd-branch": "stands where it pays, which numbers this few do not show: test_svd_branch.py",
    "learn-format": "trains the numbers of the same graph",
    "recover": "trains the numbers of the same graph",
    "train-acm": "trains the numbers of the same graph",
}


@dataclass
class Pair:
    """One file."""

    before: str
    expected: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Pair:
        head, _, rest = path.read_text(encoding="utf-8").partition("before\n")
        before, _, expected = rest.partition("\nexpected\n")
        options = dict(line.split(": ", 1) for line in head.splitlines() if line)
        assert set(options) <= {"passes", "constants", "outputs", "weights"}, path
        return cls(before, expected, {"passes": name_of(path)} | options)

    def model(self, source: str) -> ir.Model:
        model = kit.parse(source)
        for value in [v for v in model.graph.inputs if v.name in self.options.get("weights", "").split()]:
            assert value.shape is not None and value.dtype is not None
            shape = value.shape.numpy()
            array = (np.arange(np.prod(shape)) * 7 % 23 - 11).reshape(shape).astype(value.dtype.numpy())
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.register_initializer(value)
        return model


def name_of(path: Path) -> str:
    return path.stem.partition(".")[0]


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    """Floats that run evenly from -1 to 1, small integers; eight samples where the model leaves that open."""
    made = {}
    for v in model.graph.inputs:
        assert v.shape is not None and v.dtype is not None
        if v.is_initializer():
            continue
        shape = tuple(d if isinstance(d, int) else 8 for d in v.shape)
        kind = v.dtype.numpy()
        even = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
        made[v.name or ""] = (even if kind.kind == "f" else np.abs(even * 3)).astype(kind)
    return made


def rewritten(pair: Pair) -> tuple[ir.Model, ir.Model]:
    """The graph before, and what the passes make of it."""
    model = pair.model(pair.before)
    arrays = feeds(model)
    one_length = len({len(a) for a in arrays.values()}) == 1
    data = CalibrationData.from_arrays(arrays) if one_length else None
    ctx = Context(Target.load("ort-cpu", "x86-64+vnni"), data, ort.execute, reference.execute)
    return model, kit.apply(model, *parse_passes(pair.options["passes"]), ctx=ctx)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_before_becomes_expected(path: Path) -> None:
    pair = Pair.read(path)
    model, after = rewritten(pair)
    expected = pair.model(pair.expected)
    kit.assert_same_structure(after, expected, float(pair.options.get("constants", 0)), functions=False)
    if not after.functions:  # their bodies are brought to the opset of the model when it is saved
        onnx.checker.check_model(ir.to_proto(after), full_check=True)
    if (most := pair.options.get("outputs", "0")) != "lossy":
        kit.assert_same_outputs(model, after, feeds(model), atol=float(most))
    with pytest.raises(AssertionError):  # it does rewrite
        kit.assert_same_structure(model, expected, functions=False)


def test_every_pass_that_rewrites_has_a_pair() -> None:
    named = {name_of(path) for path in FILES}
    assert named | set(WITHOUT) == set(catalog.passes())
    assert not named & set(WITHOUT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_pair_lies_in_the_family_of_its_pass(path: Path) -> None:
    pair = Pair.read(path)
    assert name_of(path) in {p.name for p in parse_passes(pair.options["passes"])}
    assert f"passes.{path.parent.parent.name}." in catalog.passes()[name_of(path)].__module__
