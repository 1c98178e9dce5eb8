"""Write a pass of your own and let it run among others, in Python: one frozen dataclass, whose fields are its options.

From the command line: graphpress opt MODEL.onnx -p "lift-constants,own_pass:RoundWeights{bits=10}" --out OUT.onnx
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import onnx_ir as ir

import graphpress as gp
from graphpress.types import Numerics


@dataclass(frozen=True)
class RoundWeights(gp.Pass):
    """Round the mantissa of float32 constants to so many bits: they compress better in an archive."""

    name = "round-weights"
    numerics = Numerics.LOSSY
    bits: int = 8

    def run(self, model: ir.Model, ctx: gp.Context, report: gp.PassReport) -> None:
        for value in model.graph.initializers.values():
            if value.dtype is not ir.DataType.FLOAT:
                report.skip(value, f"holds {value.dtype}, not float32")
                continue
            mantissa, exponent = np.frexp(value.const_value.numpy())
            value.const_value = ir.tensor(np.ldexp(np.round(mantissa * 2**self.bits) / 2**self.bits, exponent))
            report.changed += 1


if __name__ == "__main__":
    demo = files("graphpress.tools.demo")
    model, reports = gp.Pipeline([RoundWeights(bits=10)]).run(gp.load(demo / "digits.onnx"))
    print([(r.name, r.changed, r.skips) for r in reports])
    gp.save(model, "rounded.onnx")
