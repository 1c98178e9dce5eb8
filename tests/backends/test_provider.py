"""A session runs on its target's provider or not at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest

import graphpress as gp
from graphpress.backends.ort import session
from graphpress.errors import Unsupported
from graphpress.target import Target
from tests import kit

TARGET = Target.load("ort-cpu")
NOWHERE = dataclasses.replace(TARGET, name="nowhere", provider="NowhereExecutionProvider", package="onnxruntime-no")
MODEL = "g (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }"
X = {"x": np.ones((2, 3), np.float32)}


USES = {
    "lower": lambda m: gp.lower(m, NOWHERE),
    "audit": lambda m: gp.audit(m, NOWHERE, X),
    "compile": lambda m: gp.compile(m, "clean", target=NOWHERE, gate=False, prove=False),  # nor judged elsewhere
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_provider_that_is_not_installed_is_refused(use: object, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(Unsupported, match=r"NowhereExecutionProvider is not installed.*pip install onnxruntime-no"):
        use(kit.parse(MODEL))  # type: ignore[operator]
    assert not recwarn.list


def test_a_session_that_runs_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a provider is there and fails to start: ONNX Runtime goes on with the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [NOWHERE.provider, "CPUExecutionProvider"])
    make = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *a, providers, **k: make(*a, providers=["CPUExecutionProvider"], **k)
    )
    with pytest.raises(Unsupported, match="runs on CPUExecutionProvider, not on NowhereExecutionProvider"):
        session.execute(kit.parse(MODEL), target=NOWHERE)


def test_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    make = ort.InferenceSession

    def spy(*a: object, providers: list[object], **k: object) -> ort.InferenceSession:
        given.append(providers)
        return make(*a, providers=["CPUExecutionProvider"], **k)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    more = dataclasses.replace(TARGET, provider_options={"a": "b"}, threads_option="n")
    run = session.execute(kit.parse(MODEL), target=more, threads=3)
    np.testing.assert_array_equal(run(X)["y"], -X["x"])
    session.execute(kit.parse(MODEL), target=more)
    assert given == [[("CPUExecutionProvider", {"a": "b", "n": "3"})], [("CPUExecutionProvider", {"a": "b"})]]


@pytest.mark.skipif("OpenVINOExecutionProvider" in ort.get_available_providers(), reason="it is installed here")
def test_openvino_is_refused_where_it_is_missing() -> None:
    with pytest.raises(Unsupported, match="pip install onnxruntime-openvino"):
        gp.lower(kit.parse(MODEL), Target.load("ort-openvino", "x86-64"))
