"""What a provider that keeps its kernels to itself says through oneDNN: the primitives of one run, by its own log.

oneDNN writes a line for each primitive if ONEDNN_VERBOSE is set before it is loaded, so the model runs in a process of
its own. A line has the implementation, the types of source and weights and the sizes, but no name of a node.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graphpress.errors import Unsupported
from graphpress.observe import npz
from graphpress.runner import Arrays
from graphpress.target import Target

_PRODUCTS = ("convolution", "deconvolution", "inner_product", "matmul")
_INTEGERS = ("u8", "s8", "u4", "s4")
_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Primitive:
    """One execution.

    Attributes:
        kind: oneDNN's name, such as ``convolution``.
        implementation: The code that ran.
        source, weights: Types as oneDNN has them, such as u8 and s8; "" for none.
        work: (elements of the result, multiply-adds) of a product, which tell one product of a model from most others;
            None for other primitives.
        microseconds: Of this execution.
    """

    kind: str
    implementation: str
    source: str
    weights: str
    work: tuple[int, int] | None
    microseconds: float

    @property
    def verdict(self) -> str:
        """As an audit's row has it: ``integer``, ``weight-only`` or ``float``."""
        if self.weights not in _INTEGERS:
            return "float"
        return "integer" if self.source in _INTEGERS else "weight-only"


def primitives(model: ir.Model, target: Target, feeds: Arrays) -> tuple[Primitive, ...]:
    """Run a model for a target's provider in another process and read back what oneDNN executed.

    Returns:
        The primitives of one run in their order; none where the provider has no oneDNN, or one without a log.

    Raises:
        Unsupported: The run failed.
    """
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        ir.save(model, Path(folder) / "model.onnx")
        npz.save(Path(folder) / "feeds.npz", feeds)
        options = {**target.provider_options, **({target.threads_option: "1"} if target.threads_option else {})}
        command = [sys.executable, "-m", __name__, folder, target.provider, json.dumps(options)]
        try:
            done = subprocess.run(
                command, env=os.environ | {"ONEDNN_VERBOSE": "1"}, capture_output=True, text=True, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired as e:
            raise Unsupported(f"the run took more than {_TIMEOUT} s", where=target.name) from e
    if done.returncode:
        raise Unsupported(f"the run failed: {done.stderr.strip()[-300:]}", where=target.name)
    found = parse(done.stdout)
    return found[len(found) // 2 :]  # of the second of two runs


def parse(log: str) -> tuple[Primitive, ...]:
    """The executed primitives of oneDNN's log."""
    return tuple(p for line in log.splitlines() if (p := _parsed(line.split(","))) is not None)


def _parsed(fields: list[str]) -> Primitive | None:
    # onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,forward_inference,src:... wei:...,attr...,alg...,sizes,t
    if len(fields) < 11 or fields[0] != "onednn_verbose" or fields[3] != "exec":
        return None
    kind, types = fields[5], dict(re.findall(r"(\w+):([a-z]+\d+)", fields[8]))
    work = _work(kind, fields[-2]) if kind in _PRODUCTS else None
    return Primitive(kind, fields[6], types.get("src", ""), types.get("wei", ""), work, 1e3 * float(fields[-1]))


def _work(kind: str, sizes: str) -> tuple[int, int]:
    """By the sizes as oneDNN writes them: ``mb1_ic16oc16_ih32oh32kh3...`` or ``4x256:256x32``."""
    if kind == "matmul":
        a, b = ([int(n) for n in part.split("x")] for part in sizes.split(":")[:2])
        elements = math.prod(a[:-1]) * b[-1]
        return elements, elements * a[-1]
    found = {name: int(n) for name, n in re.findall(r"([a-z]+)(\d+)", sizes)}
    elements = math.prod(found.get(n, 1) for n in ("mb", "oc", "oh", "ow", "od"))
    steps = ("ih", "iw", "id") if kind == "deconvolution" else ("oh", "ow", "od")
    every = math.prod(found.get(n, 1) for n in ("mb", "oc", "ic", "kh", "kw", "kd", *steps))
    return elements, every // found.get("g", 1)


def _main(folder: str, provider: str, options: str) -> None:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    asked = [(provider, json.loads(options))]
    session = ort.InferenceSession(str(Path(folder) / "model.onnx"), settings, providers=asked)
    with np.load(Path(folder) / "feeds.npz") as feeds:
        given = dict(feeds)
    for _ in range(2):
        session.run(None, given)


if __name__ == "__main__":
    _main(*sys.argv[1:])
