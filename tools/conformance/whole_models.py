"""Whole models in torch against the reference backend, on the same made-up inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.backends import fx, reference
from graphpress.backends.ort.session import Session
from graphpress.errors import BadRequest, GraphpressError, Unsupported
from graphpress.frontends import onnx_file
from graphpress.graph import edit
from graphpress.tools.conformance import inputs
from graphpress.tools.conformance.run import FAILED, PASSED, UNSUPPORTED, Conformance, Result

# Largest difference of an output over its largest magnitude, by element type; other types have to be equal.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
NOT_RUN = "not run"  # ONNX Runtime takes neither the file nor any made-up input, or we refuse the file


def run(files: Iterable[Path], root: Path) -> Conformance:
    """Compare each file; results go by the file's path below ``root``."""
    found = Conformance("fx against the reference")
    for path in files:
        verdict, why = conforms(path)
        found.results.append(Result(str(path.relative_to(root)), path.relative_to(root).parts[0], "", "", verdict, why))
    return found


def conforms(path: Path) -> tuple[str, str]:
    """(verdict, reason) of one file."""
    try:
        model = onnx_file.load(path)
        expected = reference.execute(model)
    except GraphpressError as e:
        return NOT_RUN, str(e)
    if any(node.op_type in _RANDOM or _drops(node) for node in edit.nodes(model)):
        return NOT_RUN, "draws random numbers"
    given = _answer(model, expected)
    if given is None:
        return NOT_RUN, "no made-up input runs"
    feeds, outputs = given
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = fx.execute(model)(feeds)
    except Unsupported as e:
        return UNSUPPORTED, str(e)
    except Exception as e:  # noqa: BLE001 - whatever it is, the model does not run as it should
        return FAILED, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
    why = next((f"output {n!r}: {w}" for n, y in outputs.items() if (w := first_difference(ours[n], y))), "")
    return (FAILED, why) if why else (PASSED, "")


def _drops(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) > 2


def _answer(model: ir.Model, session: Session) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Inputs that the reference takes, and what it gives."""
    for feeds in inputs.feeds(session.session.get_inputs()):
        try:
            return feeds, session(feeds)
        except BadRequest:
            continue
    return None


def first_difference(a: Any, b: Any) -> str:
    """Why two outputs are not equal within the tolerance of their type, or ""."""
    if isinstance(b, list):
        if not isinstance(a, list) or len(a) != len(b):
            return "another sequence"
        return next((w for x, y in zip(a, b, strict=True) if (w := first_difference(x, y))), "")
    if b is None or a is None:
        return "" if a is b else "only one of both is there"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}"
    tolerance = TOLERANCE.get(b.dtype.name, 0.0)
    if not tolerance:
        return "" if np.array_equal(a, b) else f"{(a != b).sum()} of {a.size} elements differ"
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return "other infinities or NaNs"
    error, scale = np.abs(x[finite] - y[finite]).max(initial=0.0), np.abs(y[finite]).max(initial=0.0)
    relative = error / max(scale, 1e-30)
    return "" if relative <= tolerance else f"differs by {relative:.2g} of its magnitude"
