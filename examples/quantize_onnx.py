"""Quantize an ONNX file to 8 bits, look at what came of it, and save it: python quantize_onnx.py [MODEL.onnx DATA.npz]

DATA holds arrays by input name, samples first, and "labels" if there are any: then the score is top-1 in percent.
"""

import sys
from importlib.resources import files

import graphpress as gp

demo = files("graphpress.tools.demo")
model, data = sys.argv[1:3] if len(sys.argv) > 2 else (demo / "digits.onnx", demo / "digits.npz")

small, report = gp.compile(model, "w8a8", data=data)

print(f"bytes of weights: {report.size['weights_before']:,} -> {report.size['weights_after']:,}")
print(f"score: {report.metric}")
for site in report.sites:
    print(f"{site.node:16} {site.scheme:50} {site.kernel or site.reason}")
gp.save(small, "quantized.onnx")  # stock ONNX: onnxruntime runs it, nothing of graphpress is needed there
