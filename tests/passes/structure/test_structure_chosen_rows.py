"""Which shapes the data decide: by hand, and by running the graph on inputs of one shape that hold different things."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.backends import reference
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.structure.layers.chosen_rows import chosen_rows
from tests import kit
from tests.passes.quantizing import model

HELD = {
    "zero": np.float32(0), "none": np.int64(0), "one": np.array([1]), "single": np.int64(1), "start": np.array([0]),
    "flat": np.array([-1, 4]), "small": np.array([0.5], np.float32), "two": np.array([2, 1]), "nothing": np.int64(0),
}  # fmt: skip
BODIES = {
    "rows of an expert": """m = ReduceMax<keepdims = 0>(x, one) b = Greater(m, zero) i = NonZero(b) j = Transpose(i)
      p = GatherND(x, j) q = Mul(p, p) w = Relu(x) y = ScatterND(w, j, q) z = Neg(y)""",
    "used positions": """m = ReduceMax<keepdims = 0>(x) c = Cast<to = 7>(m) e = Unsqueeze(c, start)
      p = Slice(x, start, e, start) q = Relu(p) y = Relu(x) z = Neg(y)""",
    "compressed": """m = ReduceMax<keepdims = 0>(x, one) b = Greater(m, zero) p = Compress<axis = 0>(x, b)
      s = Shape(p) r = Gather(s, none) q = Range(nothing, r, single) y = Relu(x) z = Neg(y)""",
    "a shape of the input's": """s = Shape(x) r = Gather(s, none) p = Range(nothing, r, single) q = Expand(small, s)
      y = Reshape(x, flat) z = Neg(y)""",
    "sizes that are fixed": """p = Tile(x, two) k = TopK<axis = 0>(x, one) q = Relu(p) y = Relu(x) z = Neg(y)""",
}
CHOSEN = {
    "rows of an expert": {"p": "NonZero", "q": "NonZero"}, "used positions": {"p": "Slice", "q": "Slice"},
    "compressed": {"p": "Compress", "q": "Range"},
}  # fmt: skip


@pytest.mark.parametrize("inferred", [True, False])
@pytest.mark.parametrize("body", BODIES)
def test_the_values_whose_shape_the_data_decide(body: str, inferred: bool) -> None:
    text = BODIES[body].replace("k = TopK", "k, l = TopK")
    used = {n: a for n, a in HELD.items() if any(f"{end}{n}{stop}" in text for end in "( " for stop in ",)")}
    kinds = {"f": "float", "i": "int64"}
    shapes = "".join(f", {kinds[a.dtype.kind]}{list(a.shape) if a.shape else ''} {n}" for n, a in used.items())
    made = model(f"g (float[N,4] x{shapes}) => (float[N,4] y) {{ {text} }}", used)
    graph = (kit.apply(made, InferShapes())[0] if inferred else made).graph
    found = {v.name: why for v, why in chosen_rows(graph).items()}
    wanted = CHOSEN.get(body, {})
    assert {n: found[n] for n in found if n in "pqyzkl"} == wanted
    assert _moving(made, "pq") == set(wanted)


def _moving(made, names: str) -> set[str]:
    """The values whose shape changes with what an input of 3 rows holds."""
    work = made.clone()
    work.graph.outputs.extend(v for n in work.graph for v in n.outputs if v.name in names)
    run, seen = reference.execute(work), []
    for rows in ([1, 2, 3], [-1, 2, -3], [-1, -2, 1]):
        given = np.repeat(np.array(rows, np.float32)[:, None], 4, 1)
        seen.append({n: a.shape for n, a in run({"x": given}).items()})
    return {n for n in seen[0] if len({s[n] for s in seen}) > 1}
