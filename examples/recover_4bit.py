"""Round the weights to 4 bits, then train the rounded model towards the float one: no labels are needed."""

from importlib.resources import files

import graphpress as gp
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.recover import Recover

demo = files("graphpress.tools.demo")
clean, fold = gp.Recipe.load("clean").passes, gp.Recipe.load("fold").passes
rounded = Quantize(mode="weight", weight="int4")
train = Recover(losses={"kl": {"temperature": 2.0}}, steps=100)

for name, passes in (("rounded", [rounded]), ("rounded, then trained", [rounded, train])):
    model, report = gp.compile(demo / "digits.onnx", [*clean, *passes, *fold], data=demo / "digits.npz")
    print(f"{name}: {report.gate.outputs[0].sqnr:.1f} dB from the float model's outputs; score: {report.metric}")
gp.save(model, "recovered.onnx")
