"""The target's table says what the installed ONNX Runtime does, no more and no less."""

from __future__ import annotations

import onnxruntime as ort
import pytest

from graphpress.backends.ort import probe
from graphpress.capability import Capability
from graphpress.target import Target

TARGET = Target.load("ort-cpu")
STATIC = [c for c in TARGET.capabilities if c.mode == "static"]


def _label(c: Capability) -> str:
    return f"{c.op}-{c.mode}-{c.kernel or 'restored'}-{','.join(c.weight)}-{','.join(map(str, c.conditions))}"


@pytest.mark.parametrize("c", TARGET.capabilities, ids=_label)
def test_every_claim_is_kept(c: Capability) -> None:
    assert [v for v in probe.variants(c) if not probe.works(c, v, TARGET)] == []


def test_disagreements_is_empty_and_the_version_is_the_probed_one() -> None:
    assert probe.disagreements(TARGET) == []
    assert TARGET.probed_with == ort.__version__, "probe the installed version and write it into the target's table"


@pytest.mark.parametrize(
    "op", ["ConvTranspose", "Sub", "Div", "Tanh", "Pad", "Erf", "ReduceMean", "Sqrt", "Max", "HardSigmoid"]
)
def test_what_the_table_lacks_has_no_kernel(op: str) -> None:
    """So that a newer ONNX Runtime that has one makes this fail, and the table grows."""
    assert TARGET.find(op, "static") == ()
    weights = {"weight": ("int8",), "weight_granularity": ("per_channel",), "weight_axis": 1, "weight_slots": (1,)}
    claim = Capability(
        op, "static", f"QLinear{op}", ("uint8",), output="required",
        activation_slots=(0, 1) if op in ("Sub", "Div", "Max") else (0,),
        **(weights if op == "ConvTranspose" else {}),
    )  # fmt: skip
    (v,) = probe.variants(claim)
    found = probe.kernels(probe.lower(probe.build(claim, v), TARGET), TARGET)
    assert found[op] == 1
    assert found["DequantizeLinear"] >= 2


@pytest.mark.parametrize("opset", range(TARGET.opsets[0], TARGET.opsets[1] + 1))
def test_fusion_at_every_opset(opset: int) -> None:
    """ONNX Runtime's rules name the versions of operators that they know; a newer opset can switch one off."""
    for c in STATIC:
        example = probe.EXAMPLES.get(c.op)
        if c.op in ("ReduceMax", "ReduceMin") and opset >= 18:
            continue  # their axes became an input there
        v = next(v for v in probe.variants(c) if v.weight in ("", "int8"))
        if example is None or example.opset <= opset:
            assert probe.works(c, v, TARGET, opset), (c.op, opset)
