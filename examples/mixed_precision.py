"""Find the best format for each layer within a share of the bytes, read the plan, change it by hand, and apply it."""

from importlib.resources import files

import graphpress as gp
from graphpress.passes.quantize.apply_plan import ApplyPlan

demo = files("graphpress.tools.demo")
model, data = demo / "digits.onnx", demo / "digits.npz"
small, report = gp.compile(model, "mixed", data=data, max_size="0.2x")
assert report.plan is not None

print(f"{report.size['weights_after'] / report.size['weights_before']:.3f} of the bytes; score: {report.metric}")
for edge, scheme in report.plan.items():
    print(f"{edge!s:32} {scheme}")

mine = report.plan.without(report.plan.nodes()[:1])  # the first layer back in float
passes = [*gp.Recipe.load("clean").passes, ApplyPlan(mine), *gp.Recipe.load("fold").passes]
small, report = gp.compile(model, passes, data=data)
print(f"{report.size['weights_after'] / report.size['weights_before']:.3f} of the bytes; score: {report.metric}")
gp.save(small, "mixed.onnx")
