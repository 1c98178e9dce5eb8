"""ONNX's own backend tests on the torch backend: the bar, and every case that does not pass, by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from graphpress.tools.cli.app import app, guarded
from graphpress.tools.conformance import cases, run

UNSUPPORTED = {"ImageDecoder"}  # in the core group: it needs a decoder of picture files
# Of these the expected numbers are rounded as much as ours: float16 written out operator by operator, two elements one
# rounding away; imaginary parts that are zero in truth, expected to 1e-7 and given to 2e-7 in float32.
ROUNDED = {"test_attention_4d_causal_fp16_expanded", "test_dft_inverse", "test_dft_inverse_opset19"}


SMALL = {"test_bvlc_alexnet", "test_squeezenet", "test_zfnet512"}  # of the light models


def conformance(expanded: bool) -> run.Conformance:
    """All but the light models; a case that is ``expanded`` computes an operator by its function's body."""
    every = cases.cases([kind for kind in cases.KINDS if kind != "real"])
    return run.run("fx", run.backend("fx"), (c for c in every if expanded or "expanded" not in c.name))


@pytest.fixture(scope="module")
def found() -> run.Conformance:
    return conformance(expanded=False)


def test_the_bar_is_held(found: run.Conformance) -> None:
    assert len(found.results) > 1500
    assert found.bar >= 0.97


@pytest.mark.slow
def test_the_bar_is_held_with_operators_written_out() -> None:
    """Function bodies too: what they are made of stands above operator by operator."""
    every = conformance(expanded=True)
    assert len(every.results) > 1900 and every.bar >= 0.97
    assert {r.name for r in every.results if r.verdict == run.FAILED} <= ROUNDED


def test_every_core_case_that_does_not_pass_is_known(found: run.Conformance) -> None:
    core = [r for r in found.results if r.group in ("core", "random") and r.verdict != run.PASSED]
    assert {r.name for r in core if r.verdict == run.FAILED} <= ROUNDED
    assert {r.op for r in core if r.verdict == run.UNSUPPORTED} <= UNSUPPORTED


def test_small_light_models_pass() -> None:
    light = run.run("fx", run.backend("fx"), (c for c in cases.cases(["real"]) if c.name in SMALL))
    assert [r.verdict for r in light.results] == [run.PASSED] * len(SMALL)


@pytest.mark.slow
def test_the_light_models_pass() -> None:
    """All nine; three small ones stand above, and each operator in ``found``."""
    light = run.run("fx", run.backend("fx"), cases.cases(["real"]))
    assert [r.verdict for r in light.results] == [run.PASSED] * 9


def test_nothing_that_claims_support_is_wrong(found: run.Conformance) -> None:
    assert {r.name for r in found.results if r.verdict == run.FAILED} <= ROUNDED


@pytest.mark.parametrize(
    ("given", "expected", "why"),
    [
        (np.ones(2), np.ones(2, np.float32), "is float64, not float32"),
        (np.ones(2), np.ones(3), "has shape"),
        (np.ones(2), np.array([1.0, 1.1]), "1 of 2 elements differ, by 0.1 at most"),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), ""),
        (np.array([np.nan, 1.0]), np.array([1.0, 1.0]), "differ"),
        (np.array([np.inf]), np.array([-np.inf]), "differ"),
    ],
)
def test_a_difference_is_found(given: np.ndarray, expected: np.ndarray, why: str) -> None:
    text = run.difference([given], [expected], 1e-3, 1e-7)
    assert why in text
    assert bool(text) == bool(why)


def test_the_command(found: run.Conformance, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After ``found``: onnx makes its cases once a process."""
    assert guarded(lambda: app(["conformance", "--op", "Relu", "--json"], standalone_mode=False)) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["totals"]["passed"] == len(data["results"]) >= 2
    for wrong, what in (
        (["--op", "Reluu"], "--op Reluu: the suite has no case for it. Did you mean 'Relu'?"),
        (["--kind", "nod"], "--kind nod: there is no such kind of case"),
        (["--backend", "fxx"], "backend 'fxx': there is no such backend"),
        (["--models", str(tmp_path)], "holds no ONNX file"),
    ):
        assert guarded(lambda wrong=wrong: app(["conformance", *wrong], standalone_mode=False)) == 2
        err = capsys.readouterr().err
        assert what in err
        assert err.count("\n") == 1
