"""The shipped demo model: small, accurate, with batch norms left to fold, and silent about the machine that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest


@pytest.fixture(scope="module")
def demo(checkout: Path) -> Path:
    return checkout / "tools/demo"


def test_both_files_stay_under_a_megabyte(demo: Path) -> None:
    assert sum((demo / name).stat().st_size for name in ("digits.onnx", "digits.npz")) < 2**20


@pytest.mark.parametrize("batch", [1, 600])
def test_it_is_accurate_at_any_batch(demo: Path, batch: int) -> None:
    data = np.load(demo / "digits.npz")
    session = onnxruntime.InferenceSession(demo / "digits.onnx", providers=["CPUExecutionProvider"])
    parts = np.array_split(data["image"], 600 // batch)
    guesses = np.concatenate([session.run(["logits"], {"image": part})[0].argmax(1) for part in parts])
    assert data["image"].dtype == np.float32
    assert data["labels"].shape == (600,)
    assert (guesses == data["labels"]).mean() > 0.975


def test_it_has_what_the_demo_shows(demo: Path) -> None:
    model = onnx.load(demo / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {"Conv", "BatchNormalization", "Relu", "Add", "MaxPool", "Gemm"} <= {n.op_type for n in model.graph.node}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]


def test_it_says_nothing_of_the_machine_that_made_it(demo: Path) -> None:
    raw = (demo / "digits.onnx").read_bytes()
    assert not any(trace in raw for trace in (b"/home", b"/usr", b"/root", b"/work", b"site-packages", b".py", b"pkg."))
